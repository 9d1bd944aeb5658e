"""The calls that some ranks make together -> the same call, by number, on each of them; or both values on all of them.

Before a rank sends anything of a call, it announces over its own connections which call it begins and with what. The
others compare this with their own call of that number, on the watching thread, while they compute already:

    announced by all, alike             the call goes on; nobody has waited
    not alike, and all of them wait     all raise the same :class:`~pararealize.errors.AgreedError`, and may go on
    not alike, and one does not wait    it may have sent something: a failure, which ends all ranks
    announced by one that has left      it will never come: a failure

Whoever needs certainty, before a collective call for instance, or where a result is given away, confirms the call: it
waits until all others have announced it. As announcements go out first, that is mostly the case by then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from pararealize.errors import AgreedError

from .heartbeat import Announcement, Failure
from .samples import about_the_same, sample_text

__all__ = ["CallsByName", "SharedCalls", "differences"]

_POLL = 0.1  # seconds between two looks for a failure


class Watched(Protocol):
    """What shared calls ask of a :class:`~pararealize.distributed.watchdog.Watch`."""

    rank: int
    who: list[str]

    def waiting(self, what: str) -> None:
        """Say what this rank waits for."""

    def raise_known(self) -> None:
        """Raise the failure that this rank knows of, if there is one."""


class SharedCalls:
    """The calls that some ranks make together, all in one order; made by :meth:`CallsByName.add`.

    Args:
        name: the same on all of them, and no other calls'.
        ranks: that make them, as the watch counts them; this one is among them.
        watch: of this rank.
        what: they are for, such as ``"run a step"``, in errors.
        remedy: what to do where ranks disagree.
        send: sends an announcement to ranks.
        fail: makes a failure known to this rank and all others.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        *,
        watch: Watched,
        what: str,
        remedy: str,
        send: Callable[[Sequence[int], Announcement], None],
        fail: Callable[[Failure], None],
    ) -> None:
        self.name, self.rank, self.what, self.remedy = name, watch.rank, what, remedy
        self.others = [other for other in ranks if other != watch.rank]
        self.number = 0
        self._watch, self._send, self._fail = watch, send, fail
        self._changed = threading.Condition()
        self._calls: dict[int, Announcement] = {}  # of this rank, which not all others are known to make too
        self._announced: dict[int, dict[int, Announcement]] = {other: {} for other in self.others}  # not compared yet
        self._last = dict.fromkeys(self.others, 0)  # the number of each rank's last announcement
        self._same = dict.fromkeys(self.others, 0)  # and of the last one that was like this rank's
        self._left: set[int] = set()

    # Main thread ------------------------------------------------------------------------------------------------------

    def begin(
        self,
        facts: Mapping[str, str],
        *,
        samples: Mapping[str, str] | None = None,
        partial: Mapping[str, str] | None = None,
        fault: str = "",
        waits: bool = False,
    ) -> None:
        """Announce the next call of this rank; the arguments are those of :class:`Announcement`."""
        with self._changed:
            self.number += 1
            call = Announcement(
                calls=self.name,
                number=self.number,
                facts=facts,
                samples=samples or {},
                partial=partial or {},
                fault=fault,
                waits=waits,
            )
            if self.others or fault:
                self._calls[self.number] = call
        self._send(self.others, call)
        with self._changed:
            for other in self.others:
                self._compare(other)

    def confirm(self) -> None:
        """Wait until all others have announced the call that this rank is in.

        Raises:
            AgreedError: on all ranks alike: they do not agree, or one of them refuses the call, and all have waited.
            DistributedError: they do not agree, or another one failed or left.
        """
        if not self._is_announced_by_all():
            self._watch.waiting("the beginning of a call")
        with self._changed:
            while not self._is_announced_by_all():
                self._watch.raise_known()
                self._changed.wait(_POLL)
            call = self._calls.pop(self.number, None)
            if call is None:  # compared, and alike
                return
            everyone = {self.rank: call}
            for other in self.others:
                everyone[other] = self._announced[other].pop(self.number, call)
                self._same[other] = self.number
        if message := self._disagreement(everyone):
            if all(one.waits for one in everyone.values()):
                raise AgreedError(message)
            self._watch.raise_known()  # comparing it has made it known

    def _is_announced_by_all(self) -> bool:
        """Whether the call is; one that no rank waits in is so where it has been found alike."""
        call = self._calls.get(self.number)
        waits = call is not None and call.waits
        return all(
            self._same[other] >= self.number or (waits and self.number in self._announced[other])
            for other in self.others
        )

    # Watching thread --------------------------------------------------------------------------------------------------

    def hear(self, other: int, call: Announcement) -> None:
        """Another rank has announced a call."""
        with self._changed:
            self._announced[other][call.number] = call
            self._last[other] = call.number
            self._compare(other)

    def leave(self, other: int) -> None:
        """Another rank has left in good order, after all that it announced."""
        if other in self._last:
            with self._changed:
                self._left.add(other)
                self._compare(other)

    # Both -------------------------------------------------------------------------------------------------------------

    def _compare(self, other: int) -> None:
        """Compare what another rank announced with this rank's calls of the same numbers, where both are there."""
        for number, call in list(self._calls.items()):
            its = self._announced[other].get(number)
            if its is not None and _alike(call, its):
                del self._announced[other][number]
                self._same[other] = number
            elif its is not None and not (call.waits and its.waits):  # one of them may have sent something
                self._fail(self._failure(number, call))
            elif its is None and other in self._left and self._last[other] < number:
                self._fail(self._departure(other, call))
        for number in [number for number in self._calls if all(same >= number for same in self._same.values())]:
            if not self._calls[number].fault:
                del self._calls[number]
        self._changed.notify_all()

    def _failure(self, number: int, call: Announcement) -> Failure:
        everyone = {self.rank: call}
        for rank, announced in self._announced.items():
            if number in announced or self._same[rank] >= number:
                everyone[rank] = announced.get(number, call)
        at_fault = next((rank for rank, one in everyone.items() if one.fault), None)
        return Failure(rank=at_fault, message=self._disagreement(everyone))

    def _departure(self, other: int, call: Announcement) -> Failure:
        who, name = self._watch.who, call.facts.get("call", self.what)
        return Failure(
            rank=other,
            message=f"{who[other]} has left (its script ended, or closed the network) after {self._last[other]} calls, "
            f"and {who[self.rank]} is in call {call.number} ({name}); let every rank do the same number of steps",
        )

    def _disagreement(self, everyone: Mapping[int, Announcement]) -> str:
        """What ranks refuse or do not have alike, with all values; empty where they agree."""
        everyone = dict(sorted(everyone.items()))
        if faults := [f"{self._watch.who[rank]}: {call.fault}" for rank, call in everyone.items() if call.fault]:
            others = [rank for rank, call in everyone.items() if not call.fault]
            text = "; ".join(faults)
            for rank in others[:1]:
                text += f"; so {self._watch.who[rank]} cannot go on with its {everyone[rank].facts.get('call', 'call')}"
            return text
        differing = list(_differing(everyone, self._watch.who))
        if not differing:
            return ""
        number = next(iter(everyone.values())).number
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        listed = "; ".join(differing[:4]) + more
        return f"the ranks do not agree on how to {self.what} (call {number}): {listed}; {self.remedy}"


def _alike(call: Announcement, other: Announcement) -> bool:
    """Whether two ranks make the same call; mostly each of their facts is equal."""
    if call.fault or other.fault or call.facts != other.facts or call.waits != other.waits:
        return False
    return (call.samples == other.samples and call.partial == other.partial) or not [*_differing({0: call, 1: other})]


def _differing(everyone: Mapping[int, Announcement], who: Sequence[str] | None = None) -> Iterator[str]:
    """A sentence for each fact that the ranks of a call do not have alike."""
    names = [f"{rank}" for rank in everyone] if who is None else who

    def label(rank: int) -> str:
        return names[rank].removeprefix("rank ")

    yield from differences({rank: call.facts for rank, call in everyone.items()}, label)
    for name in dict.fromkeys(name for call in everyone.values() for name in call.partial):
        holders = {rank: {name: call.partial[name]} for rank, call in everyone.items() if name in call.partial}
        yield from differences(holders, label)
    first, *rest = everyone.values()
    for name in first.samples:
        if any(name not in call.samples for call in rest):
            continue
        if any(not about_the_same(first.samples[name], call.samples[name]) for call in rest):
            texts = {
                rank: {f"some values of {name}": sample_text(call.samples[name])} for rank, call in everyone.items()
            }
            yield from differences(texts, label)
    if len({call.waits for call in everyone.values()}) > 1:
        waits = {rank: {"new to this rank": "yes" if call.waits else "no"} for rank, call in everyone.items()}
        yield from differences(waits, label)


def differences(facts: Mapping[int, Mapping[str, object]], who: Callable[[int], str]) -> Iterator[str]:
    """A sentence for each fact that ranks do not have alike, with the value of each: facts of ranks, by name."""
    for name in dict.fromkeys(name for its_facts in facts.values() for name in its_facts):
        ranks: dict[str, list[int]] = {}
        for rank, its_facts in facts.items():
            ranks.setdefault(str(its_facts.get(name, "nothing")), []).append(rank)
        if len(ranks) > 1:
            values = ", ".join(f"{value} on rank {', '.join(map(who, some))}" for value, some in ranks.items())
            yield f"{name} is {values}"


class CallsByName:
    """All shared calls that a rank takes part in, by their names, and what others announce of them.

    Args:
        watch, send, fail: as :class:`SharedCalls` takes them.
    """

    def __init__(
        self,
        watch: Watched,
        send: Callable[[Sequence[int], Announcement], None],
        fail: Callable[[Failure], None],
    ) -> None:
        self._watch, self._send, self._fail = watch, send, fail
        self._calls: dict[str, SharedCalls] = {}
        self._early: list[tuple[int, Announcement]] = []  # of calls that this rank has not come to yet
        self._left: list[int] = []
        self._lock = threading.Lock()

    def add(self, name: str, ranks: Sequence[int], *, what: str, remedy: str) -> SharedCalls:
        """Calls that these ranks are going to make together; the arguments are those of :class:`SharedCalls`.

        What others have announced of them before is compared with them as well.
        """
        calls = SharedCalls(name, ranks, watch=self._watch, what=what, remedy=remedy, send=self._send, fail=self._fail)
        with self._lock:
            self._calls[calls.name] = calls
            early, self._early = self._early, []
            for rank, announcement in early:
                self._hear(rank, announcement)
            for rank in self._left:
                calls.leave(rank)
        return calls

    def hear(self, rank: int, announcement: Announcement) -> None:
        """Another rank has announced a call."""
        with self._lock:
            self._hear(rank, announcement)

    def leave(self, rank: int) -> None:
        """Another rank has left in good order."""
        with self._lock:
            self._left.append(rank)
            for calls in self._calls.values():
                calls.leave(rank)

    def _hear(self, rank: int, announcement: Announcement) -> None:
        calls = self._calls.get(announcement.calls)
        if calls is None:
            self._early.append((rank, announcement))
        else:
            calls.hear(rank, announcement)
