"""What every rank was last seen doing -> the rank that the others wait for, and the sentence that says so.

A wait that lasts too long is followed from rank to rank: 2 waits for 1, 1 waits for 0, and 0 waits for nobody but is
in ``g^1 forward``. So the rank at the end of the chain is named, not the neighbour of whoever lost patience first::

    2 ──z_2──▸ 1 ──z_1──▸ 0   in 'g^1 forward' for 31 s        rank 0
    2 ──z_2──▸ 1   no sign of life for 30 s                    rank 1, whatever it was waiting for
    1 ──z_1──▸ 0 ──its gradient──▸ 1                           they wait for each other
    1 ──z_1──▸ 0 ──the loss──▸ all, a step behind 1            rank 0, which hangs where its wait was over
    2 ──z_2──▸ 1 ──z_1──▸ 0, which has sent it                 rank 1, for the same reason

Only lengths of time are compared, each measured by one clock; times of day of different machines are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["Failure", "Sight", "find_culprit", "silent"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The rank at fault and the whole sentence."""

    rank: int
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How a rank was last seen.

    Attributes:
        who: its description.
        doing: in words, such as ``"g^2 forward"``; of one that waits, what it waits for; empty between steps.
        seconds: for how long, up to now.
        waits: whether it waits for others.
        peer: for which one, where one is known.
        quiet: seconds since its last sign of life.
        left: it closed its watch in good order.
        step: how many steps it has begun.
        sent: how many messages it has sent, by the rank that they are for.
        took: how many messages it has taken, by the rank that they are of.
    """

    who: str
    doing: str
    seconds: float
    waits: bool = False
    peer: int | None = None
    quiet: float = 0.0
    left: bool = False
    step: int = 0
    sent: Mapping[int, int] = dataclasses.field(default_factory=dict)
    took: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        if not self.waits:
            return f"in {self.doing!r}" if self.doing else "outside every step"
        return f"waiting for {self.doing}" + ("" if self.peer is None else f" of rank {self.peer}")


def find_culprit(sights: Mapping[int, Sight], me: int, *, quiet: float) -> Failure:
    """Who lets rank ``me`` wait.

    Args:
        sights: of every rank, ``me`` among them, which waits.
        me: the rank that has lost patience.
        quiet: a rank without a sign of life for so many seconds counts as silent.
    """
    waited = sights[me].seconds
    chain = [me]
    while True:
        last = sights[chain[-1]]
        over = last.peer is not None and last.seconds > quiet and _has_come(chain[-1], last.peer, sights)
        if len(chain) > 1 and (last.quiet > quiet or last.left or not last.waits or over):
            return _blame(chain[-1], sights[chain[-1]], sights[me], waited, quiet)
        following = last.peer if last.peer is not None else _not_waiting(sights, chain[-1], quiet)
        if following is None or following in chain:
            circle = sorted(sights) if following is None else chain[chain.index(following) :]
            behind = _behind(circle, sights)
            if behind is not None:
                return _blame(behind, sights[behind], sights[me], waited, quiet)
            return _circle(circle, sights, waited)
        chain.append(following)


def silent(rank: int, sight: Sight) -> Failure:
    """A rank without heartbeats, whether or not anybody waits for it yet."""
    return Failure(
        rank=rank,
        message=f"{sight.who} has given no sign of life for {sight.quiet:.0f} s: its process is stopped, hangs outside "
        f"Python, or its machine cannot be reached; it was last seen {sight}, started {sight.seconds:.0f} s ago; "
        "raise timeout= if a step really takes so long",
    )


def _not_waiting(sights: Mapping[int, Sight], me: int, quiet: float) -> int | None:
    """Whom a wait for all, such as a sum over the ranks, waits for: the silent one, else the one that lingers."""
    others = {rank: sight for rank, sight in sights.items() if rank != me}
    if mute := [rank for rank, sight in others.items() if sight.quiet > quiet]:
        return max(mute, key=lambda rank: others[rank].quiet)
    if gone := [rank for rank, sight in others.items() if sight.left]:
        return gone[0]
    if busy := [rank for rank, sight in others.items() if not sight.waits]:
        return max(busy, key=lambda rank: others[rank].seconds)
    named = [rank for rank, sight in others.items() if sight.peer is not None]
    return named[0] if named else None


def _has_come(rank: int, peer: int, sights: Mapping[int, Sight]) -> bool:
    """Whether what a rank waits for was sent: it hangs where its wait was over."""
    return sights[peer].sent.get(rank, 0) > sights[rank].took.get(peer, 0)


def _behind(circle: list[int], sights: Mapping[int, Sight]) -> int | None:
    """The one rank that has begun fewer steps than the rest: they have ended the one that it still waits in."""
    least = min(sights[rank].step for rank in circle)
    found = [rank for rank in circle if sights[rank].step == least]
    return found[0] if len(found) == 1 and len(circle) > 1 else None


def _blame(rank: int, sight: Sight, waiting: Sight, waited: float, quiet: float) -> Failure:
    if sight.left:
        return Failure(
            rank=rank,
            message=f"{sight.who} has left (its script ended, or closed the network) while {waiting.who} is {waiting}; "
            "let every rank do the same number of steps",
        )
    if sight.quiet > quiet:
        answer = f"has not answered for {waited:.0f} s (no sign of life for {sight.quiet:.0f} s)"
    else:
        answer = f"has not answered for {waited:.0f} s"
    return Failure(
        rank=rank,
        message=f"{sight.who} {answer}: it was last seen {sight}, started {sight.seconds:.0f} s ago; raise timeout= if "
        "a step really takes so long",
    )


def _circle(ranks: list[int], sights: Mapping[int, Sight], waited: float) -> Failure:
    rank = min(ranks)
    waits = ", ".join(f"{sights[r].who} is {sights[r]}" for r in sorted(ranks))
    return Failure(
        rank=rank,
        message=f"the ranks have waited for each other for {waited:.0f} s: {waits}; every rank has to do the same "
        "steps in the same order, with the same batch",
    )
