"""A rank's process -> rows of what it did when, in one recorded step, on one clock.

``perf_counter`` is aligned by a barrier when the recording begins, so that times of different ranks can be compared to
within what the barrier takes.
"""

import contextlib
from collections.abc import Iterator
from time import perf_counter
from typing import Literal, NamedTuple

import torch

__all__ = ["COMPUTED", "MESSAGE_ENDS", "RecordedAction", "StepRecording"]

COMPUTED = ("stem", "context", "adapter", "fine", "coarse", "head", "difference", "sum")
"""Words for what a rank computes."""

MESSAGE_ENDS: dict[str, Literal["send", "receive"]] = {
    "send": "send",
    "receive": "receive",
    "send sum": "send",
    "receive sum": "receive",
    "send end": "send",
    "receive end": "receive",
}
"""Words for a rank's part in a message, and which end of it that is."""


class RecordedAction(NamedTuple):
    """What one rank did: a row of a recording, and a plain tuple to those who read it.

    Attributes:
        rank: in the parareal group.
        j: the segment; a coarse block counts to the segment behind it, F^1 to segment 2.
        action: ``"context"``, ``"stem"``, ``"adapter"``, ``"fine"``, ``"coarse"``, ``"head"``, ``"send"`` or
            ``"receive"``; where coarse blocks are summed over ranks, ``"difference"``, ``"sum"``, ``"send sum"`` or
            ``"receive sum"``. Backward, ``"fine"`` includes the adapter. A send is its beginning, a receive the wait.
            What a window begins with, ``"send end"`` and ``"receive end"``, counts to the first segment of the rank
            that reads it; ``"all-reduce"`` is a sum over all ranks, from when this rank gives its part.
        direction: ``"forward"`` or ``"backward"``.
        start: seconds since the recording began.
        end: seconds since the recording began.
        m: the window, from 1; 0 where the network has one window alone, and of stem and context.
    """

    rank: int
    j: int
    action: str
    direction: str
    start: float
    end: float
    m: int = 0


class StepRecording:
    """What one rank did while it was recorded.

    Attributes:
        actions: in the order in which they ended.
    """

    def __init__(self, rank: int, device: torch.device) -> None:
        self.actions: list[RecordedAction] = []
        self._rank, self._device, self._zero = rank, device, perf_counter()

    def now(self) -> float:
        """Seconds since the recording began, after the device has done all that was queued on it."""
        # Kernels run after the call that queues them has returned; without this the clock would time the queueing.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter() - self._zero

    def add(self, j: int, action: str, direction: str, start: float, end: float, m: int = 0) -> None:
        """Write one row."""
        self.actions.append(RecordedAction(self._rank, j, action, direction, start, end, m))

    @contextlib.contextmanager
    def during(self, j: int, action: str, direction: str, m: int = 0) -> Iterator[None]:
        """Write a row for what is done inside."""
        start = self.now()
        yield
        self.add(j, action, direction, start, self.now(), m)
