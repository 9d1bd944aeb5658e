"""The calls that each rank has made, in order -> the first one that some ranks made otherwise, or not at all.

Ranks number their calls, and each tells the others with every heartbeat where it made the last one of each name. One
number is one call on every rank, so a name that differs is a call that some ranks made and others did not. No message
is sent for it, and a call costs a few assignments. What a rank has forgotten is not compared.

There are two numberings: of the calls that the ranks of one network make alike, and of those among them that the ranks
of all copies do. Copies may evaluate different numbers of batches, but they save together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from .heartbeat import Failure, Heartbeat

__all__ = ["CallHistory", "Calls"]

_REMEMBERED = 1000  # calls
_CERTAIN = 0.4  # seconds that a difference has to last: ranks that refuse a call together do so at about the same time
_ORDINARY = ("step", "inference")  # where as many ranks made another call, it is that one which is odd


class CallHistory:
    """Calls of one rank, numbered from 1. One thread adds, any thread reads."""

    def __init__(self) -> None:
        self.count = 0
        self._names: dict[int, str] = {}
        self._last: dict[str, int] = {}

    def add(self, name: str) -> int:
        """The number of another call."""
        number = self.count + 1
        self._names[number] = name
        self._last[name] = number
        self.count = number
        self._names.pop(number - _REMEMBERED, None)
        return number

    def withdraw(self, number: int) -> None:
        """Let a call be comparable with no other: all ranks refused it together, whatever each had called."""
        name = self._names.pop(number, "")
        if self._last.get(name) == number:
            del self._last[name]

    def name_of(self, number: int) -> str | None:
        """What a call was; ``None`` of one that is still to come, was withdrawn, or is forgotten."""
        return self._names.get(number)

    def last_of_each(self) -> dict[int, str]:
        """For each name, the number of the last call: what others are told."""
        return {number: name for name, number in dict(self._last).items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Difference:
    """A call that another rank has made otherwise."""

    rank: int
    shared: bool
    number: int
    name: str


class Calls:
    """The calls of this rank, compared with those of the others.

    Args:
        peers: the ranks of this one's network; the rest are those of its copies.
    """

    def __init__(self, peers: Sequence[int]) -> None:
        self._peers = frozenset(peers)
        self._history, self._shared = CallHistory(), CallHistory()
        self._suspected: dict[_Difference, float] = {}  # since when

    def begin(self, name: str, *, everyone: bool) -> tuple[int, int | None]:
        """Another call; what :meth:`withdraw` takes.

        Args:
            name: of the call.
            everyone: whether the ranks of all copies make it.
        """
        return self._history.add(name), self._shared.add(name) if everyone else None

    def withdraw(self, call: tuple[int, int | None]) -> None:
        """A call that all ranks have refused together."""
        number, shared = call
        self._history.withdraw(number)
        if shared is not None:
            self._shared.withdraw(shared)

    @property
    def latest(self) -> str:
        """The last call in words; empty before the first."""
        name = self._history.name_of(self._history.count)
        return "" if name is None else f"{name} (call {self._history.count})"

    def told(self) -> dict[str, dict[int, str]]:
        """What others are told, as :class:`~pararealize.distributed.watchdog.heartbeat.Heartbeat` names it."""
        return {"calls": self._history.last_of_each(), "shared_calls": self._shared.last_of_each()}

    def compare(self, rank: int, heartbeat: Heartbeat, now: float) -> None:
        """Compare what a rank tells with the calls of this one."""
        for shared, calls in ((False, heartbeat.calls if rank in self._peers else {}), (True, heartbeat.shared_calls)):
            for number, name in calls.items():
                if self._named(shared, number) not in (None, name):
                    self._suspected.setdefault(_Difference(rank, shared, number, name), now)

    def next_look(self) -> float:
        """When a difference will have lasted long enough."""
        return min(self._suspected.values(), default=float("inf")) + _CERTAIN

    def failure(self, me: int, heard: Mapping[int, Heartbeat], who: Sequence[str], now: float) -> Failure | None:
        """A difference that has lasted.

        Args:
            me: this rank.
            heard: what each of the others has told last.
            who: descriptions of all ranks.
            now: the time, as :meth:`compare` was told it.
        """
        for difference, since in sorted(self._suspected.items(), key=lambda item: item[0].number):
            if now - since < _CERTAIN:
                continue
            del self._suspected[difference]
            shared, number = difference.shared, difference.number
            told = {rank: beat.shared_calls if shared else beat.calls for rank, beat in heard.items()}
            names = {rank: calls[number] for rank, calls in told.items() if number in calls}
            mine = self._named(shared, number)
            if mine is not None and names.get(difference.rank) == difference.name != mine:
                theirs = {rank: name for rank, name in names.items() if shared or rank in self._peers}
                return _failure({me: mine, **theirs}, number, who)
        return None

    def _named(self, shared: bool, number: int) -> str | None:
        return (self._shared if shared else self._history).name_of(number)


def _failure(names: Mapping[int, str], number: int, who: Sequence[str]) -> Failure:
    """That ranks made different calls; the one at fault is the one that differs from most."""
    counts = {name: list(names.values()).count(name) for name in names.values()}
    odd = min(names, key=lambda rank: (counts[names[rank]], names[rank] in _ORDINARY, rank))
    callers = {name: [who[rank] for rank in sorted(names) if names[rank] == name] for name in [names[odd], *counts]}
    texts = [f"{' and '.join(ranks)} called {name}" for name, ranks in callers.items()]
    return Failure(
        rank=odd,
        message=f"the ranks made different calls (call {number}): {', and '.join(texts)}; every rank has to make the "
        "same calls in the same order",
    )
