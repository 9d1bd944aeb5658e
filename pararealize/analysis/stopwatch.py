"""Runnables, each a forward and a backward pass -> the median seconds of both passes of each, measured in turn.

Each round runs every one of them once, so that a machine that slows down or speeds up does so for all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from pararealize.errors import PlanError

__all__ = ["Runnable", "median_seconds", "now"]


class Runnable(Protocol):
    """A forward pass and its backward pass; ``reset`` prepares the next run, and is not timed."""

    def reset(self) -> None:
        """Forget the last run."""

    def forward(self) -> Any:
        """The outputs, which ``backward`` takes."""

    def backward(self, outputs: Any) -> Any:
        """Gradients of everything that requires one."""


def median_seconds(
    runs: Sequence[Runnable], device: torch.device, *, repeats: int = 5, warmup: int = 2
) -> list[tuple[float, float]]:
    """Median seconds forward and backward of each run.

    Args:
        runs: what to measure.
        device: where they run: a GPU is waited for before and after each pass.
        repeats: measured rounds.
        warmup: rounds before those.

    Raises:
        PlanError: there would be nothing to measure.
    """
    if repeats < 1 or warmup < 0:
        raise PlanError(f"repeats is {repeats} and warmup {warmup}; pass 1 or more, and 0 or more")
    seconds: list[list[tuple[float, float]]] = [[] for _ in runs]
    for i in range(warmup + repeats):
        for run, times in zip(runs, seconds, strict=True):
            run.reset()
            start = now(device)
            outputs = run.forward()
            middle = now(device)
            run.backward(outputs)
            end = now(device)
            del outputs  # a graph kept alive would be freed within the next run's time
            if i >= warmup:
                times.append((middle - start, end - middle))
    medians = [tuple(map(statistics.median, zip(*times, strict=True))) for times in seconds]
    return [(forward, backward) for forward, backward in medians]


def now(device: torch.device) -> float:
    """The time at which a device has finished its queue: kernels run behind Python, which only launches them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
