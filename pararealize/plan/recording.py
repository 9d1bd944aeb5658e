"""Actions of the ranks of a step -> who did what when: one row an action, on one clock.

``perf_counter`` is aligned by a barrier when the recording begins, so that times of different ranks can be compared to
within what the barrier takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import torch

__all__ = ["Recording", "Row"]


class Row(NamedTuple):
    """What a rank did.

    Attributes:
        rank: in the parareal group.
        j: the segment; a coarse block counts to the segment behind it, F^1 to segment 2.
        action: ``"context"``, ``"stem"``, ``"adapter"``, ``"fine"``, ``"coarse"``, ``"head"``, ``"send"`` or
            ``"receive"``; where coarse blocks are summed over ranks, ``"difference"``, ``"sum"``, ``"send sum"`` or
            ``"receive sum"``. Backward, ``"fine"`` holds the adapter. A send is its beginning, a receive the wait.
        direction: ``"forward"`` or ``"backward"``.
        start: seconds since the recording began.
        end: seconds since the recording began.
    """

    rank: int
    j: int
    action: str
    direction: str
    start: float
    end: float


class Recording:
    """What one rank did while it was recorded.

    Attributes:
        actions: in the order in which they ended.
    """

    def __init__(self, rank: int, device: torch.device) -> None:
        self.actions: list[Row] = []
        self._rank, self._device, self._zero = rank, device, perf_counter()

    def now(self) -> float:
        """Seconds since the recording began, after what was given to the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter() - self._zero

    def add(self, j: int, action: str, direction: str, start: float, end: float) -> None:
        """Write one row."""
        self.actions.append(Row(self._rank, j, action, direction, start, end))

    @contextlib.contextmanager
    def during(self, j: int, action: str, direction: str) -> Iterator[None]:
        """Write a row for what is done inside."""
        start = self.now()
        yield
        self.add(j, action, direction, start, self.now())
