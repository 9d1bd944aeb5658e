"""Forward costs and backward costs -> the cut with the smallest step, which is one pass after the other.

A cut that is best for the sum of both directions need not be best for the step: the longest path forward may lead
through one segment, the longest path backward through another. Here both are kept, as pairs.

Glossary as in ``cuts.py``; ``t`` is a time of the forward pass, ``u`` of the mirrored backward pass.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from operator import add
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from .cuts import CutProblem, cheapest_cuts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers: TypeAlias = NDArray[np.float64]
    Indices: TypeAlias = NDArray[np.int64]

__all__ = ["StepProblem", "cheapest_step"]

LARGEST_TABLE = 2**25  # segments × boundaries × boundaries: beyond, the exact search is left out
MOST_PAIRS = 2**20  # pairs × boundaries after them that the exact search looks at for one segment
_ROUNDING = 1e-9  # what is closer than this, relatively, is no gain


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProblem:
    """What the two directions of a step cost, as functions of where it is cut; both over the same blocks.

    Attributes:
        forward: the costs of the forward pass, ``t_1 = s_1``, ``t_{j+1} = max(s_{j+1}, t_j + m_j) + c_j``.
        backward: those of the backward pass, whose mirror image obeys the same recursion.
    """

    forward: CutProblem
    backward: CutProblem

    def step(self, starts: Sequence[int]) -> float:
        """``t_n + u_n``, head and loss left out."""
        return self.forward.critical_path(starts) + self.backward.critical_path(starts)

    @property
    def sums(self) -> CutProblem:
        """One problem of both directions' summed costs, whose longest path is never longer than the step."""
        f, b = self.forward, self.backward
        return replace(
            f,
            work=list(map(add, f.work, b.work)),
            adapter=list(map(add, f.adapter, b.adapter)),
            coarse=[list(map(add, *rows)) for rows in zip(f.coarse, b.coarse, strict=True)],
            message=list(map(add, f.messages(), b.messages())),
            first=f.first + b.first,
        )


def cheapest_step(problem: StepProblem, n: int) -> tuple[int, ...]:
    r"""The starts of the n segments with the smallest step.

    The best cut for summed costs is found first, and moved boundary by boundary while that helps. Where its step is as
    short as its summed longest path, no other is shorter. Otherwise a search over the pairs :math:`(t_j, u_j)` that no
    other pair beats in both, boundary by boundary, finds the best of all cuts; pairs that cannot lead to a shorter step
    than the one known are dropped, by the bound

    .. math:: \max(t + C^t, V^t) + \max(u + C^u, V^u), \quad V^{t+u},

    where :math:`C` is the least sum of messages and coarse blocks still to come and :math:`V` the shortest path through
    the rest if it waited for nothing. A search that would become large (thousands of blocks, hundreds of segments) is
    left out; the result is then never worse than the best for summed costs, and need not be the best of all.

    Args:
        problem: the costs of both directions.
        n: the number of segments, from 1 to the number of blocks.

    Example:
        >>> forward = CutProblem(work=[1, 1, 1, 3], kinds=[0] * 5, adapter=[0], coarse=[[0]])
        >>> backward = CutProblem(work=[3, 1, 1, 1], kinds=[0] * 5, adapter=[0], coarse=[[0]])
        >>> both = StepProblem(forward=forward, backward=backward)
        >>> cheapest_step(both, 3), both.step((0, 1, 3))
        ((0, 1, 3), 6)
    """
    sums = problem.sums
    starts = cheapest_cuts(sums, n)
    least = sums.critical_path(starts)
    starts = _moved(problem, starts)
    step = problem.step(starts)
    if step <= least * (1 + _ROUNDING) or n * len(sums.work) ** 2 > LARGEST_TABLE:
        return starts
    found = _search(problem, n, step * (1 - _ROUNDING))
    return starts if found is None else found


def _moved(problem: StepProblem, starts: tuple[int, ...]) -> tuple[int, ...]:
    """Move one boundary at a time, or one and all behind it, as long as the step becomes shorter."""
    count, best = len(problem.forward.work), problem.step(starts)
    stride = max(1, count // (8 * len(starts)))
    while stride:
        better = False
        for j, by, whole in itertools.product(range(1, len(starts)), (-stride, stride), (False, True)):
            moved = tuple(start + by if i == j or (whole and i > j) else start for i, start in enumerate(starts))
            if not all(a < b for a, b in itertools.pairwise((*moved, count))):
                continue
            step = problem.step(moved)
            if step < best * (1 - _ROUNDING):
                starts, best, better = moved, step, True
        if not better:
            stride //= 2
    return starts


class _Table:
    """One direction as arrays: ``own[a, b]`` and ``coarse[a, b]`` of a segment, infinite where b is not behind a."""

    def __init__(self, problem: CutProblem, n: int) -> None:
        done = np.array([0.0, *itertools.accumulate(problem.work)])
        kinds = np.array(problem.kinds)
        work = done[None, :] - done[:, None]
        behind = np.triu(np.ones_like(work, dtype=bool), 1)
        self.first = problem.first + done
        self.own: Numbers = np.where(behind, np.array(problem.adapter, dtype=float)[kinds][:, None] + work, np.inf)
        coarse = np.array(problem.coarse, dtype=float)[kinds[:, None], kinds[None, :]]
        self.coarse: Numbers = coarse + problem.share * work
        self.message: Numbers = np.array(problem.messages(), dtype=float)[kinds]
        # what segments j … n cost at least, from boundary a on: C[j][a] of messages and coarse blocks alone, V[j][a]
        # without waiting
        end = np.full(len(done), np.inf)
        end[-1] = 0
        self.C: dict[int, Numbers] = {n + 1: end}
        self.V: dict[int, Numbers] = {n + 1: np.where(np.isinf(end), np.inf, -np.inf)}
        for j in range(n, 1, -1):
            rest = np.where(behind, self.coarse + self.C[j + 1][None, :], np.inf)
            self.C[j] = self.message + rest.min(axis=1)
            self.V[j] = np.maximum(self.own + rest, self.V[j + 1][None, :]).min(axis=1)

    def after(self, time: Numbers, a: Indices) -> Numbers:
        """The times at every boundary, one segment after ``time`` at boundary ``a``."""
        return np.maximum(self.own[a], (time + self.message[a])[:, None]) + self.coarse[a]


def _search(problem: StepProblem, n: int, bound: float) -> tuple[int, ...] | None:
    """The cut with the smallest step below ``bound``; nothing where there is none, or too much to look at."""
    forward, backward, sums = _Table(problem.forward, n), _Table(problem.backward, n), _Table(problem.sums, n)

    def promising(t: Numbers, u: Numbers, j: int) -> NDArray[np.bool_]:
        """Whether segments from j on can still end below the bound, for times at every boundary."""
        least_t, least_u = np.maximum(t + forward.C[j], forward.V[j]), np.maximum(u + backward.C[j], backward.V[j])
        kept: NDArray[np.bool_] = (least_t + least_u < bound) & (np.maximum(t + u + sums.C[j], sums.V[j]) < bound)
        return kept

    t, u = forward.first, backward.first
    at = np.flatnonzero(promising(t, u, 2)[1:]) + 1  # segment 1 has a block
    t, u = t[at], u[at]
    history: list[tuple[Indices, Indices]] = [(at, at)]  # (boundary, index of the pair before it)
    for j in range(2, n + 1):
        if not len(at) or len(at) * len(forward.first) > MOST_PAIRS:
            return None
        next_t, next_u = forward.after(t, at), backward.after(u, at)
        before, behind = np.nonzero(promising(next_t, next_u, j + 1))
        t, u = next_t[before, behind], next_u[before, behind]
        kept = _unbeaten(behind, t, u)
        t, u, at, before = t[kept], u[kept], behind[kept], before[kept]
        history.append((at, before))
    if not len(at):
        return None
    place, starts = int(np.argmin(t + u)), []
    for (_, before), (boundaries, _) in zip(reversed(history[1:]), reversed(history[:-1]), strict=True):
        place = int(before[place])
        starts.append(int(boundaries[place]))
    return (0, *reversed(starts))


def _unbeaten(place: Indices, t: Numbers, u: Numbers) -> Indices:
    """Which pairs (t, u) are beaten by no other at the same place: in order of t, u has to fall."""
    order = np.lexsort((u, t, place))
    rank = np.argsort(np.argsort(u, kind="stable"), kind="stable")[order] - place[order] * (len(u) + 1)
    lowest = np.minimum.accumulate(rank)  # each place starts below all before it
    first = np.ones(len(order), dtype=bool)
    first[1:] = rank[1:] < lowest[:-1]
    kept: Indices = order[first]
    return kept
