"""Things that run forward and backward -> the median seconds of each, measured in turn.

Each round runs every thing once, so that a machine that slows down or speeds up does so for all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

__all__ = ["Runnable", "stopwatch"]


class Runnable(Protocol):
    """A forward pass and its backward pass; ``again`` makes ready for one more, and is not timed."""

    def again(self) -> None:
        """Forget the last run."""

    def forward(self) -> Any:
        """The outputs, which ``backward`` takes."""

    def backward(self, outputs: Any) -> None:
        """Gradients of everything that requires one."""


def stopwatch(
    runs: Sequence[Runnable], device: torch.device, *, repeats: int = 5, warmup: int = 2
) -> list[tuple[float, float]]:
    """Median seconds forward and backward of each run.

    Args:
        runs: what to measure.
        device: where they run: a GPU is waited for before and after each pass.
        repeats: measured rounds.
        warmup: rounds before those.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in runs]
    for i in range(warmup + repeats):
        for run, times in zip(runs, taken, strict=True):
            run.again()
            start = _now(device)
            outputs = run.forward()
            middle = _now(device)
            run.backward(outputs)
            end = _now(device)
            del outputs
            if i >= warmup:
                times.append((middle - start, end - middle))
    medians = [tuple(map(statistics.median, zip(*times, strict=True))) for times in taken]
    return [(forward, backward) for forward, backward in medians]


def _now(device: torch.device) -> float:
    """The time at which a device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
