"""Two networks and inputs -> the median seconds of a call of each, measured in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pararealize.analysis.stopwatch import now
from pararealize.errors import ExampleError
from pararealize.tracing.containers import copied, leaves_of, map_leaves

from .report import Latency

__all__ = ["measure_latency", "of_batch_size"]

WARMUP = 2  # calls of each that are not counted
SECONDS = 0.25  # short calls are repeated at least for so long, or MOST times: a busy machine spoils single ones
MOST = 1000


def measure_latency(
    original: Callable[..., Any],
    other: Callable[..., Any],
    *,
    batch: int,
    rounds: int,
    device: torch.device,
    inputs: tuple[Sequence[Any], Mapping[str, Any]] = ((), {}),
) -> Latency:
    """Call both in turn, each once a round, so that a machine that slows down does so for both.

    Args:
        original: the original.
        other: the other network.
        batch: samples of a call, for the report.
        rounds: that count, at least.
        device: which is waited for before and after each call.
        inputs: positional and keyword arguments; every call has copies of its own, whose making is not timed.
    """
    seconds: list[list[float]] = [[], []]
    begin = now(device)
    for i in range(WARMUP + max(rounds, MOST)):
        if i >= WARMUP + rounds and now(device) - begin > SECONDS:
            break
        order = (0, 1) if i % 2 else (1, 0)  # neither always runs on what the other has left in the caches
        for which in order:
            args, kwargs = copied(inputs)
            start = now(device)
            (original, other)[which](*args, **kwargs)
            if i >= WARMUP:
                seconds[which].append(now(device) - start)
    first, second = (statistics.median(times) for times in seconds)
    return Latency(batch=batch, original=first, parareal=second, rounds=len(seconds[0]))


def of_batch_size(inputs: Any, size: int) -> Any:
    """The same inputs with so many samples: the first ones, again and again where there are fewer.

    Raises:
        ExampleError: there is no tensor with samples in them.

    Example:
        >>> of_batch_size({"x": torch.arange(3)}, 5)["x"].tolist()
        [0, 1, 2, 0, 1]
    """
    rows = next((leaf.shape[0] for leaf in leaves_of(inputs) if isinstance(leaf, Tensor) and leaf.ndim), 0)
    if not rows:
        raise ExampleError("the inputs hold no tensor with samples; pass at least one")
    numbers = torch.arange(size) % rows
    return map_leaves(
        lambda leaf: (
            leaf[numbers.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == rows else leaf
        ),
        inputs,
    )
