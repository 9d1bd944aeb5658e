"""StepProblem, n -> the cut with the smallest step, which is the forward pass and then the backward pass.

A cut that is best for the sum of both directions need not be best for the step: the longest path forward may lead
through one segment, the longest path backward through another. Here both are kept, as pairs.

Glossary as in ``path_cuts.py``; ``t`` is a time of the forward pass, ``u`` of the mirrored backward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import add
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .path_cuts import CutProblem, cheapest_cuts

__all__ = ["StepProblem", "cheapest_step"]

LARGEST_TABLE = 2**25  # segments × boundaries × boundaries: beyond, the exact search is left out
MOST_PAIRS = 2**20  # pairs × boundaries after them that the exact search looks at for one segment
_ROUNDING = 1e-9  # what is closer than this, relatively, is no gain

Numbers: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


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


def cheapest_step(problem: StepProblem, n: int, *, exact: bool = True) -> tuple[int, ...]:
    r"""The starts of the n segments with the smallest step.

    The best cut for summed costs is found first, and moved boundary by boundary while that helps. Where its step is as
    short as its summed longest path, no other is shorter. Otherwise a search over the pairs :math:`(t_j, u_j)` that no
    other pair beats in both, boundary by boundary, finds the best of all cuts; pairs that cannot lead to a shorter step
    than the one known are dropped, by the bound

    .. math:: \max(t + C^t, V^t) + \max(u + C^u, V^u), \quad V^{t+u},

    where :math:`C` is the least sum of messages and coarse blocks still to come and :math:`V` the shortest path through
    the rest if it waited for nothing (``least_sum`` and ``least_path`` below). With p such pairs, a segment takes
    O(p · blocks) steps. A search that would become large (thousands of blocks, hundreds of segments) is left out; the
    result is then never worse than the best for summed costs, and need not be the best of all.

    Args:
        problem: the costs of both directions.
        n: the number of segments, from 1 to the number of blocks.
        exact: search over pairs as well.

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
    starts = _improve(problem, starts)
    step = problem.step(starts)
    if not exact or step <= least * (1 + _ROUNDING) or n * len(sums.work) ** 2 > LARGEST_TABLE:
        return starts
    shorter = _search(problem, n, step * (1 - _ROUNDING))
    return starts if shorter is None else shorter


def _improve(problem: StepProblem, starts: tuple[int, ...]) -> tuple[int, ...]:
    """Move one boundary at a time, or one and all behind it, as long as the step becomes shorter."""
    count, paths = len(problem.forward.work), (_Path(problem.forward), _Path(problem.backward))
    cut = np.array(starts)
    best = sum(path.length(cut) for path in paths)
    stride = max(1, count // (8 * len(starts)))
    while stride:
        better = False
        for j, by, whole in itertools.product(range(1, len(starts)), (-stride, stride), (False, True)):
            last = len(cut) if whole else j + 1
            behind = count if last == len(cut) else cut[last]
            if not cut[j - 1] < cut[j] + by or not cut[last - 1] + by < behind:
                continue
            cut[j:last] += by
            step = sum(path.length(cut) for path in paths)
            if step < best * (1 - _ROUNDING):
                best, better = step, True
            else:
                cut[j:last] -= by
        if not better:
            stride //= 2
    return tuple(cut.tolist())


class _Path:
    r"""The critical path of one direction, of cuts that are compared: a few operations on arrays for each.

    The recursion of :meth:`CutProblem.critical_path` is a longest path, which begins with some segment's own work,

    .. math:: t_n = \max_j \Bigl( s_j + \sum_{i \ge j} c_{i-1} + \sum_{i > j} m_{i-1} \Bigr) .
    """

    def __init__(self, problem: CutProblem) -> None:
        self._prefix = np.array([0.0, *itertools.accumulate(problem.work)])
        kinds = np.array(problem.kinds)
        self._kinds, self._share = kinds, problem.share
        self._adapter: Numbers = np.array(problem.adapter, dtype=float)[kinds]
        self._message: Numbers = np.array(problem.messages(), dtype=float)[kinds]
        self._coarse: Numbers = np.array(problem.coarse, dtype=float)
        self._first = problem.first

    def length(self, starts: Indices) -> float:
        """When the last interface value is there."""
        ends = np.append(starts[1:], len(self._prefix) - 1)
        work = self._prefix[ends] - self._prefix[starts]
        own = self._adapter[starts] + work
        own[0] = self._first + work[0]
        coarse = self._coarse[self._kinds[starts], self._kinds[ends]] + self._share * work
        coarse[0] = 0.0
        onwards = (coarse + self._message[starts])[::-1].cumsum()[::-1]  # what follows segment j - 1
        own += coarse
        own[:-1] += onwards[1:]
        return float(own.max())


class _CutCosts:
    """One direction as arrays over boundaries a and b; what has no meaning, b not behind a, is infinite.

    Attributes:
        first: when segment 1 is done, by the boundary at which it ends.
        segment: ``segment[a, b]``, a segment's work and its adapter's.
        coarse: ``coarse[a, b]``, the coarse block in front of that segment.
        message: ``message[a]``, of a value at that boundary.
        least_sum: by j and a, the least sum of messages and coarse blocks of segments j … n that begin at boundary a.
        least_path: by j and a, the shortest path through these segments if they waited for nothing before them.
    """

    def __init__(self, problem: CutProblem, n: int) -> None:
        prefix = np.array([0.0, *itertools.accumulate(problem.work)])
        kinds = np.array(problem.kinds)
        work = prefix[None, :] - prefix[:, None]
        behind = np.triu(np.ones_like(work, dtype=bool), 1)
        self.first = problem.first + prefix
        self.segment: Numbers = np.where(behind, np.array(problem.adapter, dtype=float)[kinds][:, None] + work, np.inf)
        coarse = np.array(problem.coarse, dtype=float)[kinds[:, None], kinds[None, :]]
        self.coarse: Numbers = coarse + problem.share * work
        self.message: Numbers = np.array(problem.messages(), dtype=float)[kinds]
        # Both recursions run backwards from the end, where nothing is left: no sum, and no path at all (-inf).
        end = np.full(len(prefix), np.inf)
        end[-1] = 0
        self.least_sum: dict[int, Numbers] = {n + 1: end}
        self.least_path: dict[int, Numbers] = {n + 1: np.where(np.isinf(end), np.inf, -np.inf)}
        for j in range(n, 1, -1):
            rest = np.where(behind, self.coarse + self.least_sum[j + 1][None, :], np.inf)
            self.least_sum[j] = self.message + rest.min(axis=1)
            self.least_path[j] = np.maximum(self.segment + rest, self.least_path[j + 1][None, :]).min(axis=1)

    def after(self, time: Numbers, a: Indices) -> Numbers:
        """The times at every boundary, one segment after ``time`` at boundary ``a``."""
        return np.maximum(self.segment[a], (time + self.message[a])[:, None]) + self.coarse[a]

    def at_least(self, time: Numbers, j: int) -> Numbers:
        """A lower bound of the whole path, for times at every boundary before segment j.

        The path comes either from that time on, with all messages and coarse blocks to come, or from a later segment.
        """
        return np.maximum(time + self.least_sum[j], self.least_path[j])


def _search(problem: StepProblem, n: int, bound: float) -> tuple[int, ...] | None:
    """The cut with the smallest step below ``bound``; nothing where there is none, or too much to look at.

    Labels of a multicriteria shortest path (Martins, "On a multicriteria shortest path problem", 1984): the state is
    (j, b), its value all pairs (t, u) of times at which segment j can end there, forward and backward, that no other
    pair beats in both. A beaten pair leads to nothing better, since both recursions grow with their time. One time
    alone will not do as a state: the cut that is best forward so far may be the worse one backward.

    Arrays run over the pairs of the current j: ``t``, ``u``, the boundary ``at``, and ``before``, the pair of j - 1.
    There may be exponentially many pairs, so the search gives up beyond ``MOST_PAIRS``.
    """
    forward, backward, sums = _CutCosts(problem.forward, n), _CutCosts(problem.backward, n), _CutCosts(problem.sums, n)

    def promising(t: Numbers, u: Numbers, j: int) -> NDArray[np.bool_]:
        """Whether segments from j on can still end below the bound, for times at every boundary."""
        separate: NDArray[np.bool_] = forward.at_least(t, j) + backward.at_least(u, j) < bound
        return separate & (sums.at_least(t + u, j) < bound)

    t, u = forward.first, backward.first
    at = np.flatnonzero(promising(t, u, 2)[1:]) + 1  # segment 1 has a block
    t, u = t[at], u[at]
    history: list[tuple[Indices, Indices]] = [(at, at)]  # (boundary, index of the pair before it)
    for j in range(2, n + 1):
        if not len(at) or len(at) * len(forward.first) > MOST_PAIRS:
            return None
        next_t, next_u = forward.after(t, at), backward.after(u, at)
        before, ends = np.nonzero(promising(next_t, next_u, j + 1))
        t, u = next_t[before, ends], next_u[before, ends]
        best = _unbeaten(ends, t, u)
        t, u, at, before = t[best], u[best], ends[best], before[best]
        history.append((at, before))
    if not len(at):
        return None
    # walk back from the pair with the smallest sum; the last boundary is the end of the network
    pair, starts = int(np.argmin(t + u)), []
    for (_, before), (boundaries, _) in zip(reversed(history[1:]), reversed(history[:-1]), strict=True):
        pair = int(before[pair])
        starts.append(int(boundaries[pair]))
    return (0, *reversed(starts))


def _unbeaten(place: Indices, t: Numbers, u: Numbers) -> Indices:
    """Which pairs (t, u) are beaten by no other at the same place.

    In order of place, then t, then u, a pair is unbeaten if its u is below every u before it at its place. That is a
    running minimum which starts anew at each place; it is taken over ranks of u, lowered by more than all ranks from
    one place to the next, so that one pass serves all places.
    """
    order = np.lexsort((u, t, place))
    rank = np.argsort(np.argsort(u, kind="stable"), kind="stable")[order] - place[order] * (len(u) + 1)
    lowest = np.minimum.accumulate(rank)
    below = np.ones(len(order), dtype=bool)
    below[1:] = rank[1:] < lowest[:-1]
    unbeaten: Indices = order[below]
    return unbeaten
