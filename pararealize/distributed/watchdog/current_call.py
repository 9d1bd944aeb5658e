"""The call that this rank is in, as its main thread says -> a heartbeat, which the watching thread sends.

The main thread assigns, the watching thread reads: each value is one object, so neither waits for the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator

from .call_gaps import in_call
from .heartbeat import Heartbeat
from .open_works import OpenWork
from .position import ThreadId

__all__ = ["CurrentCall", "RankState"]


@dataclasses.dataclass(frozen=True, slots=True)
class RankState:
    """What this rank does, as it says itself, and since when: its next heartbeat has it."""

    doing: str
    peer: int | None = None
    waits: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)


class CurrentCall:
    """What the main thread of a rank is doing.

    Attributes:
        state: in words; replaced with every action of a call.
        thread: the one that made the last call.
        depth: how many calls it is in, one within the other.
        sent: how many messages it has sent, by the rank that they are for.
        took: how many messages it has taken, by the rank that they are of.
    """

    def __init__(self) -> None:
        self.state = RankState("")
        self.thread = ThreadId.current()
        self.depth = 0
        self.sent: Counter[int] = Counter()
        self.took: Counter[int] = Counter()
        self._begun, self._latest = 0, ""  # calls, and the last one in words

    @contextlib.contextmanager
    def during(self, call: str) -> Iterator[None]:
        """Around a call, by its name; calls may be made within calls."""
        with in_call():
            self.thread = ThreadId.current()
            if not self.depth:
                self._begun += 1
                self._latest = f"{call} (call {self._begun})"
            outer, self.state = self.state, RankState(f"the start of {call}")
            self.depth += 1
            try:
                yield
            finally:
                self.depth -= 1
                self.state = RankState(outer.doing)

    def heartbeat(
        self, now: float, *, place: str, waits_for: float = 0.0, open_work: OpenWork | None = None
    ) -> Heartbeat:
        """What the rank does.

        Args:
            now: by the monotonic clock.
            place: where its main thread stands, in words.
            waits_for: for so long the main thread has stood in a wait of torch's: it waits for others.
            open_work: what its device waits for; where the main thread says of no wait, the rank waits for that.
        """
        state = self.state
        doing, seconds, waits, peer = state.doing, now - state.since, state.waits, state.peer
        if not waits and open_work is not None:
            doing, seconds, waits, peer = open_work.name, max(now - open_work.since, 0.0), True, open_work.peer
        elif not waits and waits_for:  # in a collective call that nobody announced
            doing = f"a collective call of torch.distributed{f' in {doing!r}' if doing else ''}"
            seconds, waits = min(seconds, waits_for), True
        return Heartbeat(
            doing=doing,
            seconds=seconds,
            waits=waits,
            peer=peer,
            step=self._begun,
            sent=dict(self.sent),
            took=dict(self.took),
            latest=self._latest,
            place=place,
        )
