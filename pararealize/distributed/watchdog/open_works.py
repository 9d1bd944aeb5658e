"""Works of process groups that a device waits for -> the first of them that has not come yet, and since when.

On a GPU ``work.wait()`` makes a stream wait and returns: the host goes on, and may stand in ``loss.item()`` long after.
What its rank waits for then is what the stream waits for, which ``work.is_completed()`` tells any thread.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable

import torch.distributed as dist

__all__ = ["OpenWork", "OpenWorks"]


@dataclasses.dataclass(slots=True)
class OpenWork:
    """A message or a collective call that a device waits for.

    Attributes:
        work: torch's.
        name: what it is, in words.
        peer: the rank that it is waited of; ``None`` for all.
        done: is called once, when it has come.
        since: when it became the first that is waited for; 0 before.
    """

    work: dist.Work
    name: str
    peer: int | None
    done: Callable[[], None]
    since: float = 0.0


class OpenWorks:
    """What one rank's device waits for, in the order in which its stream does; any thread may ask."""

    def __init__(self) -> None:
        self._works: deque[OpenWork] = deque()
        self._lock = threading.Lock()

    def add(self, work: dist.Work, name: str, peer: int | None, done: Callable[[], None] = lambda: None) -> None:
        """The stream waits for this from now on, after all others."""
        with self._lock:
            self._works.append(OpenWork(work, name, peer, done))

    def first(self) -> OpenWork | None:
        """What the stream waits for now, where it waits; those before it have come, and are let go of."""
        with self._lock:
            while self._works and self._works[0].work.is_completed():
                self._works.popleft().done()
            if not self._works:
                return None
            first = self._works[0]
            first.since = first.since or time.monotonic()
            return first

    def clear(self) -> None:
        """All of them have come, or the step has failed: count what has come, and let go of all."""
        self.first()
        with self._lock:
            self._works.clear()
