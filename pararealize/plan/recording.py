"""A rank's process -> rows of what it did when, in one recorded step, on one clock.

``perf_counter`` is aligned by a barrier when the recording begins, so that times of different ranks can be compared to
within what the barrier takes.

On a GPU kernels run after the call that queues them has returned. So moments are timed events on the current stream
there, which neither wait for the device nor hold it up, and become seconds when the rows are read.
"""

import contextlib
from collections.abc import Iterator
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

__all__ = ["COMPUTED", "MESSAGE_ENDS", "Moment", "RecordedAction", "StepRecording"]

Moment: TypeAlias = float | torch.Event
"""Seconds since a recording began, or an event on a device."""

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

    Args:
        rank: in the parareal group.
        device: where the rank computes; a GPU has nothing left to do when the recording begins.
    """

    def __init__(self, rank: int, device: torch.device) -> None:
        self._rows: list[tuple[int, str, str, Moment, Moment, int]] = []
        self._rank, self._device = rank, device
        self._zero: Any = perf_counter()
        if device.type != "cpu":
            self._zero = self.now()

    @property
    def actions(self) -> list[RecordedAction]:
        """The rows, in the order in which they ended; on a GPU this waits until it has done all of them."""
        rows = self._rows
        return [
            RecordedAction(self._rank, j, action, direction, self._seconds(start), self._seconds(end), m)
            for j, action, direction, start, end, m in rows
        ]

    def now(self) -> Moment:
        """The moment on the host; on a GPU that at which its current stream has done what was queued on it so far."""
        if self._device.type == "cpu":
            return perf_counter() - float(self._zero)
        event: torch.Event = torch.get_device_module(self._device).Event(enable_timing=True)
        event.record()
        return event

    def add(self, j: int, action: str, direction: str, start: Moment, end: Moment, m: int = 0) -> None:
        """Write one row."""
        self._rows.append((j, action, direction, start, end, m))

    def _seconds(self, moment: Moment) -> float:
        if isinstance(moment, float):
            return moment
        moment.synchronize()
        return float(self._zero.elapsed_time(moment)) / 1e3

    @contextlib.contextmanager
    def during(self, j: int, action: str, direction: str, m: int = 0) -> Iterator[None]:
        """Write a row for what is done inside."""
        start = self.now()
        yield
        self.add(j, action, direction, start, self.now(), m)
