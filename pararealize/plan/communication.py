"""Segments of each rank, coarse maps that are the identity -> Crossing of each rank: what it passes to whom.

With ``F^j = id`` for j = p … q, ``z_{q+1} = z_p + Σ (y_i - x_i)`` over i = p+1 … q+1: nobody needs the values between,
and the sum is gathered in pairs, ``s_i`` on the way, on the last of its ranks. Here F^1 to F^4 are the identity::

    in a row     0 ─z_1─▸ 1 ─z_2─▸ 2 ─z_3─▸ 3 ─z_4─▸ 4      four messages, one after the other
    as a sum              1 ─s_2─▸ 2       3 ─s_4─▸ 4      first round
                                   2 ─────s_3─────▸ 4      second round
                 0 ───────────────z_1─────────────▸ 4      added last: z_5 = z_1 + s_5

The gradient of z_{q+1} is that of every y_i and of z_p, and its negative that of every x_i: it goes the same ways back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence

__all__ = ["Crossing", "cross", "rounds"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What one rank passes to whom; ranks are counted from 0, segments from 1.

    Attributes:
        z_from: the rank that sends it z; ``None`` on the first rank and within a sum.
        z_to: the rank that it sends z to; ``None`` on the last rank and within a sum.
        terms: its segments i whose ``y_i - x_i`` belong to a sum over ranks, the first of all that it owns.
        sums_from: the ranks that send it sums, in the order in which it adds them.
        sum_to: the rank that it sends its own sum to; ``None`` where the sum ends, and outside of sums.
    """

    z_from: int | None
    z_to: int | None
    terms: range = range(0)
    sums_from: tuple[int, ...] = ()
    sum_to: int | None = None


def cross(runs: Sequence[tuple[int, int]], identities: Container[int] = ()) -> tuple[Crossing, ...]:
    """What each rank passes to whom, with sums over all runs of two or more ranks whose coarse maps are the identity.

    A rank within a sum has no other coarse maps than identities; the one at its end may go on with others.

    Args:
        runs: first and last segment of each rank, as a partition has them.
        identities: every j for which F^j is the identity; none for one message an interface, in a row.

    Example:
        >>> for crossing in cross([(1, 1), (2, 3), (4, 4)], {1, 2, 3}):
        ...     print(crossing.z_from, crossing.z_to, list(crossing.terms), crossing.sums_from, crossing.sum_to)
        None 2 [] () None
        None None [2, 3] () 2
        0 None [4] (1,) None
    """
    ranks = len(runs)
    found = [Crossing(z_from=r - 1 if r else None, z_to=r + 1 if r + 1 < ranks else None) for r in range(ranks)]
    terms = [_leading(run, identities) for run in runs]
    begin = 1
    while begin < ranks:
        end = begin
        while terms[end] and terms[end].stop > runs[end][1] and end + 1 < ranks and terms[end + 1]:
            end += 1
        if end > begin:
            _gather(found, terms, begin, end)
        begin = end + 1
    return tuple(found)


def _leading(run: tuple[int, int], identities: Container[int]) -> range:
    """The first segments of a rank that have an identity in front of them."""
    first, last = run
    stop = first
    while first > 1 and stop <= last and stop - 1 in identities:
        stop += 1
    return range(first, stop)


def _gather(found: list[Crossing], terms: Sequence[range], begin: int, end: int) -> None:
    """Let the ranks ``begin`` to ``end`` sum, on the last of them."""
    found[begin - 1] = dataclasses.replace(found[begin - 1], z_to=end)
    for rank in range(begin, end):
        found[rank] = Crossing(z_from=None, z_to=None, terms=terms[rank])
    found[end] = dataclasses.replace(found[end], z_from=begin - 1, terms=terms[end])
    for pairs in rounds(range(end, begin - 1, -1)):
        for receiver, sender in pairs:
            found[sender] = dataclasses.replace(found[sender], sum_to=receiver)
            received = (*found[receiver].sums_from, sender)
            found[receiver] = dataclasses.replace(found[receiver], sums_from=received)


def rounds(members: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Pairs (receiver, sender) of a sum of all members on the first of them, ``⌈log2⌉`` rounds; each sends once.

    Example:
        >>> rounds([4, 3, 2, 1])
        [[(4, 3), (2, 1)], [(4, 2)]]
    """
    found, stride = [], 1
    while stride < len(members):
        found.append([(members[i - stride], members[i]) for i in range(stride, len(members), 2 * stride)])
        stride *= 2
    return found
