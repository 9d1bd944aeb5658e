"""A network -> forward and backward of one training step, the way its method wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pararealize.multigrid.module import LayerParallel
from pararealize.multigrid.monitor import Monitor
from pararealize.multigrid.oneshot import SampleStates, names_of

__all__ = ["MonitoredStep", "Step", "one_process_step", "one_shot_step"]


class Step(Protocol):
    """Forward and backward, as :meth:`pararealize.Stage.step`: adds gradients and gives the loss, detached."""

    def __call__(
        self,
        x: torch.Tensor,
        /,
        *,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        scaler: torch.amp.GradScaler | None = None,
    ) -> torch.Tensor:
        """One step."""


def one_process_step(net: nn.Module) -> Step:
    """The step of an ordinary module: forward, loss, backward."""

    def step(
        x: torch.Tensor,
        /,
        *,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        scaler: torch.amp.GradScaler | None = None,
    ) -> torch.Tensor:
        loss = loss_fn(net(x), target)
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        return loss.detach()

    return step


class MonitoredStep:
    """Forward, backward and a monitor's check, for :func:`pararealize.fit`, which has the optimiser's step.

    ``fit`` keeps the monitor's state in its checkpoints, and what it raised in the history and the metrics.

    Args:
        monitor: of the network that is trained.

    Example:
        >>> from pararealize import Recipe, fit, layer_parallel
        >>> from pararealize.data.catalogue import digits
        >>> from pararealize.models import resnet20
        >>> from pararealize.multigrid.monitor import Monitor
        >>> from pararealize.train.steps import MonitoredStep
        >>> net = layer_parallel(resnet20(), coarsening=2)
        >>> step = MonitoredStep(Monitor(net, exact_after=2))
        >>> history = fit(net, digits(image_size=8, batch_size=479), Recipe(epochs=1, lr=0.05), step=step)
        >>> print(history.events[-1])
        step 2: 2 steps are done: exact from here on
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._step = one_process_step(monitor.net)

    def __call__(
        self,
        x: Tensor,
        /,
        *,
        target: Tensor,
        loss_fn: Callable[[Any, Tensor], Tensor],
        scaler: torch.amp.GradScaler | None = None,
    ) -> Tensor:
        """Add the gradients, those that the monitor corrected where it did; give the loss before that, detached."""
        loss = self._step(x, target=target, loss_fn=loss_fn, scaler=scaler)
        self.monitor.check(lambda: loss_fn(self.monitor.net(x), target), scaler)
        return loss


def one_shot_step(net: LayerParallel) -> Step:
    """Forward and backward of one-shot training for :func:`pararealize.fit`, which has the optimiser's step."""
    states = SampleStates()

    def step(
        x: Tensor,
        /,
        *,
        target: Tensor,
        loss_fn: Callable[[Any, Tensor], Tensor],
        scaler: torch.amp.GradScaler | None = None,
    ) -> Tensor:
        samples = names_of(x)
        net.forget()
        net.states.update(states.of(samples))
        loss = loss_fn(net(x), target)
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        states.keep(samples, net.states)
        return loss.detach()

    return step
