"""Blocks, n, a number of windows -> the blocks at which windows begin. Arithmetic on plain lists.

Time is the first aim: within a window the longest of n segments decides, so that windows of five equal blocks on four
devices take as long as those of eight. Windows in which the space changes come second: their adapters and coarse blocks
are no identities, and are worth less; a block that changes the space may therefore be a window by itself, which runs as
in the original. Windows of equal lengths come third, since the error of a window grows with its length.

Glossary as in ``path_cuts.py``: ``a`` and ``b`` are boundaries, boundary a stands before block a.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["WindowProblem", "balanced_starts", "longest_segment", "window_starts"]

CANDIDATES = 8  # boundaries a window, of those between which a long network's windows are chosen
CHANGE_CHARGE = 0.01  # of the whole network's work, for each segment that begins in another space than its window
LENGTH_CHARGE = 0.2  # of the whole network's work, shared by windows by the squares of their lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowProblem:
    """What the blocks of a network cost, as far as it matters to where windows begin.

    Attributes:
        work: the cost of each block, forward and backward.
        spaces: the number of the space at each boundary, one more than blocks.
        n: the number of devices.
    """

    work: Sequence[float]
    spaces: Sequence[int]
    n: int


def longest_segment(prefix: Sequence[float], a: int, b: int, n: int) -> float:
    """The least longest of at most n runs that blocks a to b - 1 can be divided into; to within 0.1%.

    Args:
        prefix: sums of the blocks' costs, one more than blocks.
        a: the first block.
        b: the block behind the last.
        n: how many runs.

    Example:
        >>> longest_segment([0, 1, 2, 3, 4, 5], 0, 5, 4)
        2
    """
    total = prefix[b] - prefix[a]
    largest = max(itertools.starmap(lambda x, y: y - x, itertools.pairwise(prefix[a : b + 1])))
    low, high = max(largest, total / n), total
    if not _fits(prefix, a, b, n, low):
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if _fits(prefix, a, b, n, middle) else (middle, high)
    else:
        high = low
    return _longest_within(prefix, a, b, high)


def balanced_starts(prefix: Sequence[float], a: int, b: int, n: int) -> tuple[int, ...]:
    """The first block of each run of such a division, from a on: as long as the longest, so that the last is short.

    Args:
        prefix: sums of the blocks' costs, one more than blocks.
        a: the first block.
        b: the block behind the last.
        n: how many runs, at most.

    Example:
        >>> balanced_starts([0, 2, 3, 5, 6, 8], 0, 5, 3)
        (0, 2, 4)
    """
    return tuple(start for start, _ in _runs(prefix, a, b, longest_segment(prefix, a, b, n)))


def _runs(prefix: Sequence[float], a: int, b: int, limit: float) -> Iterator[tuple[int, int]]:
    """Runs of blocks, each as long as the limit allows."""
    while a < b:
        stop = min(max(bisect.bisect_right(prefix, prefix[a] + limit * (1 + 1e-12)) - 1, a + 1), b)
        yield a, stop
        a = stop


def _fits(prefix: Sequence[float], a: int, b: int, n: int, limit: float) -> bool:
    return sum(1 for _ in itertools.islice(_runs(prefix, a, b, limit), n + 1)) <= n


def _longest_within(prefix: Sequence[float], a: int, b: int, limit: float) -> float:
    return max(prefix[stop] - prefix[start] for start, stop in _runs(prefix, a, b, limit))


def window_starts(problem: WindowProblem, first: int, stop: int, windows: int) -> tuple[int, ...]:
    r"""The first block of each window among blocks ``first`` to ``stop`` - 1.

    A path through the boundaries with the least sum, over windows, of the longest segment and of the charges above;
    dynamic programming over (number of windows, boundary). Of long networks only boundaries at equal distances, eight a
    window, and those at which the space changes are looked at.

    Args:
        problem: of the whole network.
        first: the first block.
        stop: the block behind the last.
        windows: how many, from 1 to the number of these blocks. Blocks that change the space, and are windows by
            themselves, come on top, where the others are enough for as many windows.

    Example:
        >>> alike = WindowProblem(work=[1.0] * 12, spaces=[0] * 13, n=4)
        >>> window_starts(alike, 0, 12, 3)
        (0, 4, 8)
    """
    count = stop - first
    assert 1 <= windows <= count, "the caller checks the number of windows"
    if windows == 1:
        return (first,)
    if windows == count:
        return tuple(range(first, stop))
    prefix = list(itertools.accumulate(problem.work, initial=0.0))
    total, spaces = prefix[-1], problem.spaces
    stride = max(1, count // (CANDIDATES * windows))
    changes = {i + side for i in range(first, stop) if spaces[i] != spaces[i + 1] for side in (0, 1)}
    boundaries = sorted({*range(first, stop, stride), *(changes & set(range(first, stop))), stop})
    longest = max(2 * CANDIDATES, math.ceil(len(boundaries) / windows) * 3)  # candidates that one window may span

    @functools.cache
    def cost(a: int, b: int) -> float:
        n = min(problem.n, b - a)
        begins = (
            sum(spaces[i] != spaces[a] for i in balanced_starts(prefix, a, b, n)) if spaces[a] != spaces[b - 1] else 0
        )
        charge = CHANGE_CHARGE * begins + LENGTH_CHARGE * ((b - a) / count) ** 2
        return longest_segment(prefix, a, b, n) + charge * total

    for on_top in (True, False):  # where so many windows cannot be made of the others, blocks that change it count too
        least = _least(windows, longest, cost, boundaries, spaces if on_top else ())
        if least[windows][-1][0] < math.inf:
            break
    k, end, starts = windows, len(boundaries) - 1, list[int]()
    while end > 0:
        _, begin, k = least[k][end]
        starts.append(boundaries[begin])
        end = begin
    return tuple(reversed(starts))


def _least(
    windows: int,
    longest: int,
    cost: Callable[[int, int], float],
    boundaries: Sequence[int],
    spaces: Sequence[int],
) -> list[list[tuple[float, int, int]]]:
    """For k windows that end at each boundary: the least sum, the boundary before, and k there.

    Args:
        windows: k at most.
        longest: how many boundaries a window may span.
        cost: of a window between two blocks.
        boundaries: the candidates.
        spaces: by whose changes single blocks are windows on top of the k; empty where all windows count.
    """
    least = [[(math.inf, -1, -1)] * len(boundaries) for _ in range(windows + 1)]
    least[0][0] = 0.0, -1, -1
    for end in range(1, len(boundaries)):
        for begin in range(max(0, end - longest), end):
            a, b = boundaries[begin], boundaries[end]
            free = bool(spaces) and b - a == 1 and spaces[a] != spaces[b]
            for k in range(0 if free else 1, windows + 1):
                before = least[k if free else k - 1][begin][0]
                if before < math.inf and (value := before + cost(a, b)) < least[k][end][0]:
                    least[k][end] = value, begin, k if free else k - 1
    return least
