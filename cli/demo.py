"""A network and a data set -> losses: the few training steps of ``pararealize demo``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from pararealize.data.catalogue import Dataset

__all__ = ["Step", "progress_lines", "train"]

LINES = 20  # of progress, whatever the number of steps
WARM_UP = 5  # steps over which the learning rate rises


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One training step: its number from 1, the loss before it, the seconds it took."""

    number: int
    loss: float
    seconds: float


def train(net: nn.Module, data: Dataset, *, steps: int, lr: float) -> Iterator[Step]:
    """Train with AdamW, the learning rate rising over the first steps; a value a step."""
    import torch
    from torch.nn import functional

    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    net.train()
    for number, (images, labels) in enumerate(itertools.islice(data.batches(None), steps), start=1):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, number / WARM_UP)
        loss = functional.cross_entropy(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield Step(number=number, loss=loss.item(), seconds=time.perf_counter() - started)


def progress_lines(taken: Iterable[Step], steps: int) -> Iterator[tuple[str, Step]]:
    """Each step with a line to print: the mean loss since the last line, empty where none is due."""
    every = max(1, -(-steps // LINES))
    recent: list[Step] = []
    for step in taken:
        recent.append(step)
        if step.number % every and step.number != steps:
            yield "", step
            continue
        loss, seconds = (
            sum(values) / len(recent) for values in zip(*((s.loss, s.seconds) for s in recent), strict=True)
        )
        yield f"step {step.number:>{len(str(steps))}} of {steps}   loss {loss:6.3f}   {seconds:5.2f} s a step", step
        recent = []
