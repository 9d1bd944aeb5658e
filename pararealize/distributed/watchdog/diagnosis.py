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

import torch.distributed as dist

from .heartbeat import Failure, Heartbeat

__all__ = ["RankStatus", "fault_of", "find_culprit", "is_consequence", "silent"]

_COMMUNICATION = ("gloo", "nccl", "connection", "pair closure", "timed out", "socket", "broken pipe")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus(Heartbeat):
    """What a rank was last heard to do; ``seconds`` up to now.

    Attributes:
        who: its description.
        quiet: seconds since its last sign of life.
        left: it closed its watchdog in good order.
    """

    who: str
    quiet: float = 0.0
    left: bool = False

    @classmethod
    def of(cls, heartbeat: Heartbeat, who: str, *, quiet: float = 0.0, left: bool = False) -> RankStatus:
        """From a heartbeat that came ``quiet`` seconds ago: what the rank did then it is taken to do still."""
        fields = {field.name: getattr(heartbeat, field.name) for field in dataclasses.fields(heartbeat)}
        return cls(who=who, quiet=quiet, left=left, **{**fields, "seconds": heartbeat.seconds + quiet})

    def __str__(self) -> str:
        if not self.waits and not self.doing:
            return f"outside every step, after {self.latest}" if self.latest else "outside every step"
        if not self.waits:
            return f"in {self.doing!r}"
        return f"waiting for {self.doing}" + ("" if self.peer is None else f" of rank {self.peer}")


def find_culprit(statuses: Mapping[int, RankStatus], me: int, *, quiet: float) -> Failure:
    """Who lets rank ``me`` wait.

    Args:
        statuses: of every rank, ``me`` among them, which waits.
        me: the rank that has lost patience.
        quiet: a rank without a sign of life for so many seconds counts as silent.
    """
    waited = statuses[me].seconds
    chain = [me]
    while True:
        last = statuses[chain[-1]]
        over = last.peer is not None and last.seconds > quiet and _has_come(chain[-1], last.peer, statuses)
        if len(chain) > 1 and (last.quiet > quiet or last.left or not last.waits or over):
            return _blame(chain[-1], statuses[chain[-1]], statuses[me], waited, quiet)
        following = last.peer if last.peer is not None else _not_waiting(statuses, chain[-1], quiet)
        if following is None or following in chain:
            circle = sorted(statuses) if following is None else chain[chain.index(following) :]
            behind = _behind(circle, statuses)
            if behind is not None:
                return _blame(behind, statuses[behind], statuses[me], waited, quiet)
            return _circle(circle, statuses, waited)
        chain.append(following)


def fault_of(rank: int, status: RankStatus, error: BaseException | str) -> Failure:
    """An error that starts on a rank, or how its script ends, in words."""
    if isinstance(error, str):
        message = f"{status.who} {error}; it was last seen {status}"
    else:
        message = f"{status.who} failed {status}: {type(error).__name__}: {str(error).strip()[:500]}"
    return Failure(rank=rank, message=message.removesuffix(": "))


def silent(rank: int, status: RankStatus) -> Failure:
    """A rank without heartbeats, whether or not anybody waits for it yet."""
    return Failure(
        rank=rank,
        message=f"{status.who} has given no sign of life for {status.quiet:.0f} s: its process is stopped, hangs "
        f"outside Python, or its machine cannot be reached; it was last seen {status}, started {status.seconds:.0f} s "
        f"ago{_place(status)}; raise timeout= if a step really takes so long",
    )


def _not_waiting(statuses: Mapping[int, RankStatus], me: int, quiet: float) -> int | None:
    """Whom a wait for all, such as a sum over the ranks, waits for: the silent one, else the one that lingers."""
    others = {rank: status for rank, status in statuses.items() if rank != me}
    if mute := [rank for rank, status in others.items() if status.quiet > quiet]:
        return max(mute, key=lambda rank: others[rank].quiet)
    if gone := [rank for rank, status in others.items() if status.left]:
        return gone[0]
    if busy := [rank for rank, status in others.items() if not status.waits]:
        return max(busy, key=lambda rank: others[rank].seconds)
    return next((rank for rank, status in others.items() if status.peer is not None), None)


def _has_come(rank: int, peer: int, statuses: Mapping[int, RankStatus]) -> bool:
    """Whether what a rank waits for was sent: it hangs where its wait was over."""
    return statuses[peer].sent.get(rank, 0) > statuses[rank].took.get(peer, 0)


def _behind(circle: list[int], statuses: Mapping[int, RankStatus]) -> int | None:
    """The one rank that has begun fewer steps than the rest: they have ended the one that it still waits in."""
    least = min(statuses[rank].step for rank in circle)
    behind = [rank for rank in circle if statuses[rank].step == least]
    return behind[0] if len(behind) == 1 and len(circle) > 1 else None


def _blame(rank: int, status: RankStatus, waiting: RankStatus, waited: float, quiet: float) -> Failure:
    if status.left:
        return Failure(
            rank=rank,
            message=f"{status.who} has left (its script ended, or closed the network) while {waiting.who} is "
            f"{waiting}; let every rank do the same number of steps",
        )
    silence = f" (no sign of life for {status.quiet:.0f} s)" if status.quiet > quiet else ""
    return Failure(
        rank=rank,
        message=f"{status.who} has not answered for {waited:.0f} s{silence}: it was last seen {status}, started "
        f"{status.seconds:.0f} s ago{_place(status)}; raise timeout= if a step really takes so long",
    )


def _place(status: RankStatus) -> str:
    return f", and stands at {status.place}" if status.place else ""


def _circle(ranks: list[int], statuses: Mapping[int, RankStatus], waited: float) -> Failure:
    waits = ", ".join(f"{statuses[r].who} is {statuses[r]}" for r in sorted(ranks))
    return Failure(
        rank=min(ranks),
        message=f"the ranks have waited for each other for {waited:.0f} s: {waits}; every rank has to do the same "
        "steps in the same order, with the same batch",
    )


def is_consequence(error: BaseException, *, waits: bool) -> bool:
    """Whether an error may come from another rank's failure: it did in a wait, or speaks of communication."""
    if isinstance(error, dist.DistError | ConnectionError | TimeoutError):
        return True
    text = str(error).lower()
    if type(error) is RuntimeError and (waits or any(word in text for word in _COMMUNICATION)):
        return True
    return error.__cause__ is not None and is_consequence(error.__cause__, waits=waits)  # as the runtime's own are
