"""Layers, some of them fixed -> the levels of multigrid as plain data: steps, intervals, and each rank's share.

    layer      0   1   2   3   4   5 | 6 | 7   8   9          6 is fixed: a transition between two chains
    level 0    C   F   F   F   C   F   C   C   F   F   (C)     points; point n lies before layer n
    level 1    └─ step 0, width 4 ─┘└2┘└1─┘└─ width 3 ┘        one step an interval, with the weights of its first layer
    level 2    └─ step 0, width 6 ────┘└1─┘└───────────┘

A chain is cut every c steps, the last interval is as long as it turns out; both ends of a fixed layer are C-points of
every level, so that no interval and no coarse step reaches across one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pararealize.argument_types import is_allowed
from pararealize.errors import MultigridError

__all__ = ["Hierarchy", "Level", "LevelStep", "make_hierarchy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelStep:
    """A step of a level: from the value before ``layer`` to the one before ``layer + width``, by that layer alone."""

    layer: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One grid.

    Attributes:
        steps: S of them, between points 0 … S.
        intervals: (first, behind the last) step of each interval; interval j is step j of the next level. The left end
            of every interval is a C-point, the points within it are F-points. Empty on the coarsest level.
    """

    steps: tuple[LevelStep, ...]
    intervals: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """All grids, the finest first.

    Example:
        >>> print(make_hierarchy([False] * 10, levels=3, coarsening=3))
        level 0: 10 steps, 4 intervals of 3, 3, 3, 1
        level 1: 4 steps, 2 intervals of 3, 1
        level 2: 2 steps
    """

    levels: tuple[Level, ...]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.levels[0].steps)

    def layers_of(self, j: int) -> list[int]:
        """The layers of interval j of the finest level, in the order of its steps."""
        finest = self.levels[0]
        return [step.layer for step in finest.steps[slice(*finest.intervals[j])]]

    def reversed(self) -> Hierarchy:
        """The same grids with time running backwards, for the adjoint: step s of S becomes step S-1-s."""
        return Hierarchy(levels=tuple(map(_reversed, self.levels)))

    def share(self, ranks: int) -> tuple[range, ...]:
        """Consecutive intervals of the finest level for each of so many ranks, about equally many layers each.

        Every rank has an interval as long as there are enough of them; the last ranks have none otherwise.
        """
        ends = [end for _, end in self.levels[0].intervals]
        borders = [0]
        for rank in range(1, ranks):
            ideal = self.layers * rank / ranks
            nearest = min(range(1, len(ends) + 1), key=lambda j: abs(ends[j - 1] - ideal))
            low, high = borders[-1] + 1, len(ends) - (ranks - rank)  # an interval for this rank, and for each later one
            borders.append(min(max(nearest, low), high) if high >= low else min(low, len(ends)))
        return tuple(itertools.starmap(range, itertools.pairwise([*borders, len(ends)])))

    def owners(self, ranks: int) -> tuple[int, ...]:
        """The rank of every layer, where so many ranks have a :meth:`share` each."""
        return tuple(rank for rank, share in enumerate(self.share(ranks)) for j in share for _ in self.layers_of(j))

    def __str__(self) -> str:
        lines = []
        for number, level in enumerate(self.levels):
            sizes = ", ".join(str(end - first) for first, end in level.intervals[:12])
            more = ", …" if len(level.intervals) > 12 else ""
            parts = f", {len(level.intervals)} intervals of {sizes}{more}" if level.intervals else ""
            lines.append(f"level {number}: {len(level.steps)} steps{parts}")
        return "\n".join(lines)


def _reversed(level: Level) -> Level:
    count = len(level.steps)
    return Level(
        steps=level.steps[::-1],
        intervals=tuple((count - end, count - first) for first, end in reversed(level.intervals)),
    )


def make_hierarchy(fixed: Sequence[bool], levels: int = 2, coarsening: int | Sequence[int] = 4) -> Hierarchy:
    """Levels for layers in a row.

    Args:
        fixed: for every layer, whether it is no time step: a transition, which every level takes as it is.
        levels: number of levels, at least 2.
        coarsening: c, how many steps of a level make one of the next; one number for all, or one for each.

    Raises:
        MultigridError: c is larger than the longest chain, or there are more levels than that chain can be coarsened
            to; or an argument is none of the sort.
    """
    factors = _factors(levels, coarsening)
    longest = max((len(list(run)) for is_fixed, run in itertools.groupby(fixed) if not is_fixed), default=0)
    if longest < 2:
        raise MultigridError(
            f"the longest chain of residual blocks has {longest}; multigrid needs two in a row at least: take a deeper "
            "network, or train this one as it is"
        )
    if factors[0] > longest:
        raise MultigridError(
            f"coarsening = {factors[0]} is larger than the longest chain, which has {longest} residual blocks; "
            f"pass coarsening={max(2, round(longest**0.5))}, or at most {longest}"
        )
    steps = tuple(LevelStep(layer=n, width=1) for n in range(len(fixed)))
    finer: list[Level] = []
    for number, c in enumerate(factors, start=1):
        runs = [len(list(run)) for is_fixed, run in itertools.groupby(fixed) if not is_fixed]
        if max(runs) < 2:
            raise MultigridError(
                f"levels = {levels} are too many: at level {number - 1} no chain has two steps left to coarsen "
                f"(longest chain {longest}, coarsening {', '.join(map(str, factors))}); pass levels={number}, or a "
                "smaller coarsening"
            )
        intervals = _intervals(fixed, c)
        finer.append(Level(steps=steps, intervals=intervals))
        fixed = [fixed[first] for first, _ in intervals]
        steps = tuple(
            LevelStep(layer=steps[first].layer, width=sum(step.width for step in steps[first:end]))
            for first, end in intervals
        )
    return Hierarchy(levels=(*finer, Level(steps=steps, intervals=())))


def _factors(levels: Any, coarsening: object) -> list[int]:
    """How many steps make one of the next level, for every level but the coarsest."""
    if not is_allowed(levels, int) or levels < 2:
        raise MultigridError(f"levels is {levels!r}; pass a whole number of at least 2, the layers themselves included")
    several = isinstance(coarsening, Sequence) and not isinstance(coarsening, str)
    factors: list[Any] = list(coarsening) if several else [coarsening] * (levels - 1)  # type: ignore[call-overload]
    if any(isinstance(c, bool) or not isinstance(c, int) or c < 2 for c in factors):
        raise MultigridError(f"coarsening is {coarsening!r}; pass a whole number of at least 2, or one for each level")
    if len(factors) != levels - 1:
        raise MultigridError(
            f"{len(factors)} coarsenings for {levels} levels; pass one number, or one for each of the {levels - 1} "
            "levels that are coarsened"
        )
    return factors


def _intervals(fixed: Sequence[bool], c: int) -> tuple[tuple[int, int], ...]:
    """Every fixed step alone, and what lies between in runs of c."""
    intervals: list[tuple[int, int]] = []
    begin = 0
    for is_fixed, run in itertools.groupby(fixed):
        end = begin + len(list(run))
        size = 1 if is_fixed else c
        intervals += [(first, min(first + size, end)) for first in range(begin, end, size)]
        begin = end
    return tuple(intervals)
