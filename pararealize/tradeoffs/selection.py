r"""Trials of single windows -> selections of windows that may be together: short steps at little error.

Windows must not overlap, and blocks in none of them run in sequence. The time of a selection is the sum of its windows'
longest segments and its sequential blocks; its error is taken for :math:`\sqrt{\sum_m e_m^2}` of the errors that its
windows make by themselves, as if these were independent of one another. Both are sums over disjoint spans of blocks, so
that the selections which no other beats in both are found boundary by boundary: what is beaten among the first blocks
is beaten with whatever follows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from .sensitivity import WindowTrial

__all__ = ["Selection", "fastest_within", "selections", "spread"]

MOST = 256  # selections that are kept at a boundary
LEAST = 1e-9  # an error below this is none

_Chain: TypeAlias = "tuple[WindowTrial, _Chain] | None"  # a selection's windows, the last one first
_Partial: TypeAlias = tuple[float, float, _Chain]  # of the blocks in front of a boundary: time, squared error, windows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Windows that do not overlap.

    Attributes:
        windows: in order; blocks in none of them are sequential.
        time: of one step, in the unit of the blocks' costs, stem and head left out.
        error: predicted, of the output.
    """

    windows: tuple[WindowTrial, ...]
    time: float
    error: float


def selections(costs: Sequence[float], trials: Iterable[WindowTrial]) -> list[Selection]:
    """Those that no other beats in both time and error, from the original to the shortest step.

    Of more than 256 that share their last boundary, those are left out whose times are about those of others.

    Args:
        costs: of each block in sequence.
        trials: of single windows.

    Example:
        >>> pair = WindowTrial(starts=(0, 1), stop=2, cost=1.0, error=0.1)
        >>> [(len(s.windows), s.time) for s in selections([1.0, 1.0], [pair])]
        [(0, 2.0), (1, 1.0)]
    """
    by_stop: dict[int, list[WindowTrial]] = {}
    for trial in trials:
        if math.isfinite(trial.error):
            by_stop.setdefault(trial.stop, []).append(trial)
    found: list[list[_Partial]] = [[(0.0, 0.0, None)]]
    for b, cost in enumerate(costs, 1):
        longer = [(time + cost, squared, chain) for time, squared, chain in found[b - 1]]
        for trial in by_stop.get(b, ()):
            added = max(trial.error, LEAST) ** 2
            longer += [
                (time + trial.cost, squared + added, (trial, chain)) for time, squared, chain in found[trial.first]
            ]
        found.append(_unbeaten(longer))
    return [
        Selection(windows=_windows(chain), time=time, error=math.sqrt(squared))
        for time, squared, chain in reversed(found[-1])
    ]


def _unbeaten(partial: list[_Partial]) -> list[_Partial]:
    """Those that no other beats, the fastest first; of very many, the nearest of each span of time, and the fastest."""
    front: list[_Partial] = []
    for one in sorted(partial, key=lambda one: one[:2]):
        if not front or one[1] < front[-1][1]:
            front.append(one)
    if len(front) <= MOST:
        return front
    shortest, longest = front[0][0], front[-1][0]
    spans = {int((MOST - 2) * (one[0] - shortest) / (longest - shortest)): one for one in front[1:]}
    return [front[0], *spans.values()]


def _windows(chain: _Chain) -> tuple[WindowTrial, ...]:
    windows = []
    while chain is not None:
        window, chain = chain
        windows.append(window)
    return tuple(reversed(windows))


def spread(front: Sequence[Selection], points: int) -> list[Selection]:
    """Some of the selections that have windows, from the nearest to the fastest, at about equal ratios of their times.

    Args:
        front: what :func:`selections` gives.
        points: how many, at most.
    """
    parallel = [selection for selection in front if selection.windows]
    if len(parallel) <= points:
        return parallel
    chosen = [parallel[-1]]
    ratio = parallel[-1].time / parallel[0].time
    for i in range(1, points):
        wanted = parallel[0].time * ratio ** (1 - i / (points - 1))
        left = (selection for selection in parallel if selection not in chosen)
        chosen.append(min(left, key=lambda selection: abs(selection.time - wanted)))
    return [selection for selection in parallel if selection in chosen]


def fastest_within(
    front: Sequence[Selection], points: int, tolerance: float, measure: Callable[[Selection], float]
) -> None:
    """Measure selections of which the last are about the fastest whose measured error is within a tolerance.

    The first is the fastest that is predicted to be within it; then, by bisection, faster ones where it is, and nearer
    ones where it is not, until neighbours on the front are told apart.

    Args:
        front: what :func:`selections` gives.
        points: how many are measured, at most.
        tolerance: of the measured error.
        measure: gives it.
    """
    parallel = [selection for selection in front if selection.windows]
    within, beyond = -1, len(parallel)
    place = max(0, sum(selection.error <= tolerance for selection in parallel) - 1)
    for _ in range(points):
        if beyond - within < 2:
            break
        if measure(parallel[place]) <= tolerance:
            within = place
        else:
            beyond = place
        place = (within + beyond) // 2
