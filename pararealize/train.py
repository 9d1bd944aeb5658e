"""A network, a data set and a recipe -> the same network, trained, and the history of its losses and errors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .data import Dataset
from .errors import TrainingError
from .history import EpochRow, History, StepRow
from .recipe import Recipe, he_weights
from .restore import host_random_kept
from .score import Score, correct, evaluate, logits_of

__all__ = ["Progress", "evaluate", "fit"]

LOG_EVERY = 10  # steps in a row of the history


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, told after every step.

    Attributes:
        step: number of the step that has just been taken, from 1; of ``steps``.
        epoch: its number, from 1; of ``epochs``.
        loss: mean over the epoch so far.
        error: share of the epoch's samples so far taken for another class.
        rate: samples a second, lately.
        left: seconds to go at that rate.
        score: on the test part, where the step was the last of an epoch.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    error: float
    rate: float
    left: float
    score: Score | None = None


def fit(
    net: nn.Module,
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    report: Callable[[Progress], None] | None = None,
    log_every: int = LOG_EVERY,
) -> History:
    """Train a network on the training part of a data set, and score it on the test part after every epoch.

    Args:
        net: any module from inputs to logits ``(batch, classes)``: an original, a parareal network, a way to run one.
            It is trained where it is, in train mode, and left so.
        data: batches of inputs and labels; order and augmentation follow from its own seed.
        recipe: optimiser, schedule and so on; the paper's unless told.
        seed: of random numbers drawn in training (dropout) and of initial weights. The caller's random state stays.
        report: called after every step.
        log_every: steps in a row of the history.

    Returns:
        The history; ``history.score`` is the last score.

    Raises:
        TrainingError: the loss or the gradients are not finite any more.
        ExampleError: the network gives no logits.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> from pararealize.recipe import Recipe
        >>> net = pararealize(resnet20(), n=3, coarse="linear")
        >>> history = fit(net, digits(image_size=8), Recipe(epochs=1, lr=0.05))
        >>> len(history.epochs), history.score.count
        (1, 360)
    """
    recipe = Recipe() if recipe is None else recipe
    steps = recipe.epochs * data.steps
    device = next(net.parameters()).device
    history = History()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda(net)))
        stack.enter_context(host_random_kept())
        torch.manual_seed(seed)
        if recipe.initialise == "he":
            he_weights(net, seed)
        optimizer = recipe.make_optimizer(p for p in net.parameters() if p.requires_grad)
        scaler = torch.amp.GradScaler(device.type) if recipe.amp == "float16" else None
        net.train()
        step = 0
        recent = torch.zeros(3, dtype=torch.float64)
        clock = _Clock(steps)
        for epoch in range(recipe.epochs):
            whole = torch.zeros(3, dtype=torch.float64)
            for x, labels in data.epoch(epoch):
                lr = recipe.lr_at(step, steps=steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                sums, norm = _step(net, x.to(device), labels, recipe, optimizer, scaler, step + 1)
                step += 1
                recent += sums
                whole += sums
                if step % log_every == 0:
                    loss, right, count = recent.tolist()
                    history.rows.append(
                        StepRow(
                            step=step, epoch=epoch + 1, lr=lr, loss=loss / count, error=1 - right / count, gradient=norm
                        )
                    )
                    recent.zero_()
                last = step % data.steps == 0
                loss, right, count = whole.tolist()
                score = evaluate(net, data) if last else None
                if score is not None:
                    history.score = score
                    history.rows.append(
                        EpochRow(
                            step=step,
                            epoch=epoch + 1,
                            lr=lr,
                            loss=loss / count,
                            error=1 - right / count,
                            test_loss=score.loss,
                            test_error=score.error,
                        )
                    )
                rate, left = clock.tick(step, int(sums[2]))
                if report is not None:
                    report(
                        Progress(
                            step=step,
                            steps=steps,
                            epoch=epoch + 1,
                            epochs=recipe.epochs,
                            loss=loss / count,
                            error=1 - right / count,
                            rate=rate,
                            left=left,
                            score=score,
                        )
                    )
    return history


def _step(
    net: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    number: int,
) -> tuple[torch.Tensor, float]:
    """One step; the sums of loss, correct samples and samples, and the gradients' norm."""
    amp = torch.float32 if recipe.amp is None else getattr(torch, recipe.amp)
    with torch.autocast(x.device.type, amp, enabled=recipe.amp is not None):
        output = logits_of(net(x), labels)
        labels = labels.to(output.device)
        loss = recipe.loss(output, labels)
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(f"the loss of step {number} is {value}; lower the learning rate", number, "forward")
    optimizer.zero_grad(set_to_none=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if scaler is None:
        loss.backward()
    else:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if recipe.clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    right = correct(output.detach(), labels).item()
    return torch.tensor([value * len(labels), right, len(labels)], dtype=torch.float64), norm.item()


class _Clock:
    """Samples a second and seconds to go."""

    def __init__(self, steps: int) -> None:
        self.steps, self.samples, self.first = steps, 0, time.perf_counter()
        self.taken = 0

    def tick(self, step: int, samples: int) -> tuple[float, float]:
        self.samples += samples
        self.taken += 1
        seconds = max(time.perf_counter() - self.first, 1e-9)
        return self.samples / seconds, seconds / self.taken * (self.steps - step)


def _cuda(net: nn.Module) -> list[Any]:
    return sorted({p.device.index or 0 for p in net.parameters() if p.device.type == "cuda"})
