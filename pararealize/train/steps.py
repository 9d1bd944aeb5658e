"""A network -> a function that takes one batch forward and backward: plainly, watched by a monitor, or one-shot.

None of them touches the optimiser: :func:`pararealize.fit` takes its step with the gradients that were added.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pararealize.multigrid.module import LayerParallel
from pararealize.multigrid.monitor import Monitor
from pararealize.multigrid.oneshot import SampleStates, names_of

__all__ = ["MonitoredStep", "TrainingStep", "one_process_step", "one_shot_step"]

LossFunction = Callable[[Any, Tensor], Tensor]
Scaler = torch.amp.GradScaler | None


class TrainingStep(Protocol):
    """Forward and backward, with the signature of :meth:`pararealize.Stage.step`."""

    def __call__(self, x: Tensor, /, *, target: Tensor, loss_fn: LossFunction, scaler: Scaler = None) -> Tensor:
        """Add the gradients of ``loss_fn(output, target)``, scaled where there is a scaler; return the loss, detached.

        ``loss_fn`` may be called more than once, to compare; what counts is its first call.
        """


def one_process_step(net: nn.Module) -> TrainingStep:
    """The step of an ordinary module: forward, loss, backward."""

    def step(x: Tensor, /, *, target: Tensor, loss_fn: LossFunction, scaler: Scaler = None) -> Tensor:
        loss = loss_fn(net(x), target)
        # outside of autocast, as torch.amp's pages ask: backward runs each operation in the type that its forward had
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        return loss.detach()

    return step


class MonitoredStep:
    """Forward, backward and a monitor's check of both.

    ``fit`` keeps the monitor's state in its checkpoints, and what it raised in the history and the metrics.

    Args:
        monitor: of the network that is trained.

    Example:
        >>> from pararealize import Recipe, fit, layer_parallel
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> from pararealize.multigrid import Monitor
        >>> from pararealize.train import MonitoredStep
        >>> net = layer_parallel(resnet20(), coarsening=2)
        >>> step = MonitoredStep(Monitor(net, exact_after=2))
        >>> history = fit(net, digits(image_size=8, batch_size=479), Recipe(epochs=1, lr=0.05), step=step)
        >>> print(history.events[-1])
        step 2: 2 steps are done: exact from here on
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._step = one_process_step(monitor.net)

    def __call__(self, x: Tensor, /, *, target: Tensor, loss_fn: LossFunction, scaler: Scaler = None) -> Tensor:
        """Add the gradients, those that the monitor corrected where it did; give the loss before that, detached."""
        loss = self._step(x, target=target, loss_fn=loss_fn, scaler=scaler)
        self.monitor.check(lambda: loss_fn(self.monitor.net(x), target), scaler)
        return loss


def one_shot_step(net: LayerParallel) -> TrainingStep:
    """The step of one-shot training: the solve of every sample begins where its last one ended."""
    states, ordinary_step = SampleStates(), one_process_step(net)

    def step(x: Tensor, /, *, target: Tensor, loss_fn: LossFunction, scaler: Scaler = None) -> Tensor:
        samples = names_of(x)
        net.forget()
        net.states.update(states.of(samples))
        loss = ordinary_step(x, target=target, loss_fn=loss_fn, scaler=scaler)
        states.keep(samples, net.states)
        return loss

    return step
