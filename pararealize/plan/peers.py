"""Segments of each rank, coarse maps that are the identity -> Peers of each rank: from whom and to whom z and sums go.

With ``F^j = id`` for j = p … q, ``z_{q+1} = z_p + Σ (y_i - x_i)`` over i = p+1 … q+1: nobody needs the values between,
and the sum is gathered in pairs, ``s_i`` on the way, on the last of its ranks. Here F^1 to F^4 are the identity::

    in a row     0 ─z_1─▸ 1 ─z_2─▸ 2 ─z_3─▸ 3 ─z_4─▸ 4      four messages, one after the other
    as a sum              1 ─s_2─▸ 2       3 ─s_4─▸ 4      first round
                                   2 ─────s_3─────▸ 4      second round
                 0 ───────────────z_1─────────────▸ 4      added last: z_5 = z_1 + s_5

The gradient of z_{q+1} is that of every y_i and of z_p, and its negative that of every x_i: it goes the same ways back.
"""

import dataclasses
from collections.abc import Container, Sequence
from typing import Self

__all__ = ["Peers", "peers_of", "rounds"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The ranks that one rank exchanges z and sums with; ranks are counted from 0, segments from 1.

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

    def moved(self, first: int) -> Self:
        """The same ranks where they are counted from another one, whose number there is ``first``."""

        def move(rank: int | None) -> int | None:
            return None if rank is None else rank + first

        return dataclasses.replace(
            self,
            z_from=move(self.z_from),
            z_to=move(self.z_to),
            sums_from=tuple(rank + first for rank in self.sums_from),
            sum_to=move(self.sum_to),
        )


def peers_of(runs: Sequence[tuple[int, int]], identities: Container[int] = ()) -> tuple[Peers, ...]:
    """The peers of each rank, with sums over all runs of two or more ranks whose coarse maps are the identity.

    A rank within a sum has no other coarse maps than identities; the one at its end may go on with others.

    Args:
        runs: first and last segment of each rank.
        identities: every j for which F^j is the identity; none for one message an interface, in a row.

    Example:
        >>> for peers in peers_of([(1, 1), (2, 3), (4, 4)], {1, 2, 3}):
        ...     print(peers.z_from, peers.z_to, list(peers.terms), peers.sums_from, peers.sum_to)
        None 2 [] () None
        None None [2, 3] () 2
        0 None [4] (1,) None
    """
    ranks = len(runs)
    peers = [Peers(z_from=r - 1 if r else None, z_to=r + 1 if r + 1 < ranks else None) for r in range(ranks)]
    terms = [_terms(run, identities) for run in runs]
    begin = 1  # rank 0 has y_1 = z_1, and no difference to add
    while begin < ranks:
        end = begin
        # A sum goes on to the next rank where all segments of this one are terms, and the next one begins with a term.
        while terms[end] and terms[end].stop > runs[end][1] and end + 1 < ranks and terms[end + 1]:
            end += 1
        if end > begin:  # a sum on one rank needs no message
            _sum_over(range(begin, end + 1), peers, terms)
        begin = end + 1
    return tuple(peers)


def _terms(run: tuple[int, int], identities: Container[int]) -> range:
    """The first segments of a rank that have an identity in front of them."""
    first, last = run
    others = (j for j in range(first, last + 1) if j == 1 or j - 1 not in identities)
    return range(first, next(others, last + 1))


def _sum_over(ranks: range, peers: list[Peers], terms: Sequence[range]) -> None:
    """Let neighbouring ranks sum, on the last of them; z of the rank before them goes straight there."""
    before, end = ranks[0] - 1, ranks[-1]
    peers[before] = dataclasses.replace(peers[before], z_to=end)
    for rank in ranks[:-1]:
        peers[rank] = Peers(z_from=None, z_to=None, terms=terms[rank])
    peers[end] = dataclasses.replace(peers[end], z_from=before, terms=terms[end])
    for pairs in rounds(ranks[::-1]):
        for receiver, sender in pairs:
            peers[sender] = dataclasses.replace(peers[sender], sum_to=receiver)
            senders = (*peers[receiver].sums_from, sender)
            peers[receiver] = dataclasses.replace(peers[receiver], sums_from=senders)


def rounds(members: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Pairs (receiver, sender) of a sum of all members on the first of them, ``⌈log2⌉`` rounds; each sends once.

    Example:
        >>> rounds([4, 3, 2, 1])
        [[(4, 3), (2, 1)], [(4, 2)]]
    """
    pairs, stride = [], 1
    while stride < len(members):
        pairs.append([(members[i - stride], members[i]) for i in range(stride, len(members), 2 * stride)])
        stride *= 2
    return pairs
