r"""Trials of single windows -> selections of windows that may be together: short steps at little error.

Windows must not overlap, and blocks in none of them run in sequence. The time of a selection is the sum of its windows'
longest segments and its sequential blocks; its error is taken for :math:`\sqrt{\sum_m e_m^2}` of the errors that its
windows make by themselves, as if these were independent of one another. For a price :math:`\lambda` of error, the
selection with the least :math:`\sum t + \lambda \sum e^2` is a shortest path through the boundaries; prices from none
to very high give the lower convex hull of time against error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from .sensitivity import WindowTrial

__all__ = ["Selection", "selections"]

PRICES = 64
LEAST = 1e-9  # an error below this is none


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
    """The lower convex hull of time against squared error, the shortest step last.

    Args:
        costs: of each block in sequence.
        trials: of single windows.

    Example:
        >>> pair = WindowTrial(starts=(0, 1), stop=2, cost=1.0, error=0.1)
        >>> [(len(s.windows), s.time) for s in selections([1.0, 1.0], [pair])]
        [(0, 2.0), (1, 1.0)]
    """
    trials = [trial for trial in trials if math.isfinite(trial.error)]
    errors = [max(trial.error, LEAST) for trial in trials]
    gains = [sum(costs[t.first : t.stop]) - t.cost for t in trials]
    steepest = max((gain / error**2 for gain, error in zip(gains, errors, strict=True) if gain > 0), default=1.0)
    flattest = min((gain / error**2 for gain, error in zip(gains, errors, strict=True) if gain > 0), default=1.0)
    low, high = math.log(flattest) - math.log(2 * len(costs)), math.log(steepest) + 1
    prices = [math.exp(high + (low - high) * i / (PRICES - 1)) for i in range(PRICES)]
    found: dict[tuple[WindowTrial, ...], Selection] = {}
    for price in [*prices, 0.0]:
        selection = _cheapest(costs, trials, price)
        found.setdefault(selection.windows, selection)
    return sorted(found.values(), key=lambda s: (-s.time, s.error))


def _cheapest(costs: Sequence[float], trials: Sequence[WindowTrial], price: float) -> Selection:
    """The selection with the least time and priced error: dynamic programming over boundaries."""
    by_stop: dict[int, list[WindowTrial]] = {}
    for trial in trials:
        by_stop.setdefault(trial.stop, []).append(trial)
    least = [0.0] * (len(costs) + 1)
    chosen: list[WindowTrial | None] = [None] * (len(costs) + 1)
    for b in range(1, len(costs) + 1):
        least[b] = least[b - 1] + costs[b - 1]
        for trial in by_stop.get(b, ()):
            value = least[trial.first] + trial.cost + price * trial.error**2
            if value < least[b]:
                least[b], chosen[b] = value, trial
    b, windows = len(costs), list[WindowTrial]()
    while b > 0:
        trial_or_none = chosen[b]
        if trial_or_none is None:
            b -= 1
        else:
            windows.append(trial_or_none)
            b = trial_or_none.first
    windows.reverse()
    inside = {i for window in windows for i in range(window.first, window.stop)}
    time = sum(window.cost for window in windows) + sum(c for i, c in enumerate(costs) if i not in inside)
    error = math.sqrt(sum(window.error**2 for window in windows))
    return Selection(windows=tuple(windows), time=time, error=error)
