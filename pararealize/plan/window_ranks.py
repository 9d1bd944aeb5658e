"""Windows, segments of each rank -> WindowRanks: which rank has which segments of a window, and what it passes to whom.

The output w_m of a window is what the next one begins with, on every rank that has segments there. It gets there in one
of two ways::

    in general               the chain of z, or sums of differences, gives w_m on the rank of the last segment,
                             which sends it to the others                                         (peers.py)
    where F is the identity  w_m = y_1 + Σ (y_j - x_j): an all-reduce gives it to all ranks at once

The second way takes one exchange in the place of two. It needs all ranks, and a window behind this one: what the last
window gives is read by the head alone.
"""

import dataclasses
from collections.abc import Container, Sequence

from pararealize.coarse.spec import numbered

from .peers import Peers, peers_of
from .spec import Window

__all__ = ["WindowRanks", "ranks_of_windows"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowRanks:
    """Which rank has which segments of one window.

    Attributes:
        m: the window, from 1; 0 where there is one alone.
        runs: for each rank its segments j of the window; empty where it has none.
        peers: for each rank, what it passes to whom; nothing where the window is all-reduced.
        all_reduces: whether all ranks get w_m at once, as a sum.
    """

    m: int
    runs: tuple[range, ...]
    peers: tuple[Peers, ...]
    all_reduces: bool = False

    @property
    def n(self) -> int:
        """How many segments the window has."""
        return sum(map(len, self.runs))

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that have segments of it, in order; they read what it begins with."""
        return tuple(rank for rank, run in enumerate(self.runs) if run)

    @property
    def owner(self) -> int:
        """The rank of the last segment, where w_m is there first."""
        return self.members[-1]

    def rank_of(self, j: int) -> int:
        """The rank of a segment."""
        return next(rank for rank, run in enumerate(self.runs) if j in run)

    def last_of(self, rank: int) -> int:
        """A rank's last segment of the window, whose number its z or its sum has."""
        return self.runs[rank][-1]

    def value(self, letter: str, j: int) -> str:
        """What a value is called, such as ``z_3``; with several windows, ``z_2_3``."""
        return numbered(f"{letter}_", self.m, j)


def ranks_of_windows(
    windows: Sequence[Window], runs: Sequence[tuple[int, int]], identities: Container[str] = ()
) -> tuple[WindowRanks, ...]:
    """Who has which segments of each window.

    Args:
        windows: of a plan.
        runs: first and last device of each rank, where segment j of a window is on device ``offset + j``.
        identities: the names of coarse blocks that are the identity and may be summed over ranks; none for one message
            an interface, in a row.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> plan = pararealize(resnet20(), n=2, coarse="linear", windows=3).plan
        >>> for window in ranks_of_windows(plan.windows, [(1, 1), (2, 2)], {"F1_1", "F3_1"}):
        ...     print(window.m, window.runs, window.owner, window.all_reduces)
        1 (range(1, 2), range(2, 3)) 1 True
        2 (range(1, 2), range(2, 3)) 1 False
        3 (range(1, 2), range(2, 3)) 1 False
    """
    return tuple(_ranks_of(window, runs, identities, last=window is windows[-1]) for window in windows)


def _ranks_of(
    window: Window, runs: Sequence[tuple[int, int]], identities: Container[str], *, last: bool
) -> WindowRanks:
    """Those of one window; its ranks are neighbours, whose peers are counted among them first."""
    js = [range(max(first - window.offset, 1), min(stop - window.offset, window.n) + 1) for first, stop in runs]
    js = [run if run else range(0) for run in js]
    members = [rank for rank, run in enumerate(js) if run]
    same = {row.j for row in window.coarse_blocks if row.name in identities}
    all_reduces = not last and len(members) == len(runs) > 1 and len(same) == window.n - 1
    nobody = Peers(z_from=None, z_to=None)
    peers = [nobody] * len(runs)
    if not all_reduces:
        among = peers_of([(js[rank][0], js[rank][-1]) for rank in members], same)
        for rank, one in zip(members, among, strict=True):
            peers[rank] = one.moved(members[0])
    return WindowRanks(m=window.segments[0].m, runs=tuple(js), peers=tuple(peers), all_reduces=all_reduces)
