"""A network -> CapturedStep: forward, loss and backward of a training step as CUDA graphs, for ``fit``.

    in one process    one graph of the whole step (:func:`pararealize.capture_step`), of the largest batch so far
    of a stage        graphs of each part between the messages (:func:`pararealize.capture_stage`), of every size

What decides the numbers is the same: batches, learning rates, scaler, clipping, checkpoints. A run that goes on
captures anew at its first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.argument_types import typed_arguments
from pararealize.distributed.stage import Stage
from pararealize.errors import DeviceError
from pararealize.network.local.graphed_stage import GraphedStage, capture_stage
from pararealize.network.local.graphed_step import GraphedStep, capture_step
from pararealize.network.local.module import require_gpus

__all__ = ["CapturedStep", "StepCounts"]


@dataclasses.dataclass(slots=True)
class StepCounts:
    """How many steps were replayed, and how many ran eagerly: smaller batches, and what a capture was made from."""

    replayed: int = 0
    eager: int = 0


class CapturedStep:
    """Forward, loss and backward as CUDA graphs; pass it to :func:`fit` as its ``step``.

    In one process the first batch is captured, and a larger one once more; smaller ones, such as the last of an epoch,
    run eagerly. On a stage every size is captured behind its first step. The loss must not depend on Python values that
    change.

    Args:
        net: on one GPU, or a rank's stage on one.

    Raises:
        DeviceError: the network is on no GPU, or on several.

    Attributes:
        output: of the network in the last step, without a graph; ``None`` on ranks without the head.
        counts: of steps so far.

    Example:
        >>> from pararealize.models import resnet20
        >>> from pararealize.train import CapturedStep
        >>> CapturedStep(resnet20())
        Traceback (most recent call last):
            ...
        pararealize.errors.DeviceError: CUDA graphs need a network on GPUs, and this one is on cpu...
        >>> # net = resnet20().cuda(); fit(net, digits(), Recipe(epochs=1), step=CapturedStep(net))
    """

    @typed_arguments(DeviceError, "net")
    def __init__(self, net: nn.Module) -> None:
        self.net, self.counts = net, StepCounts()
        self.output: Any = None
        self._stage: GraphedStage | None = None
        self._graphed: GraphedStep | None = None
        self._samples = 0
        if isinstance(net, Stage):
            self._stage = capture_stage(net)
        elif len(devices := {*require_gpus(net)}) > 1:
            raise DeviceError(
                f"a step in one graph needs one GPU, and the network is on {len(devices)}; take one device, or a "
                "process for each with torchrun"
            )

    def __call__(
        self,
        x: Any,
        /,
        *,
        target: Tensor,
        loss_fn: Callable[[Any, Tensor], Tensor],
        scaler: torch.amp.GradScaler | None = None,
    ) -> Tensor:
        """Leave the gradients of ``loss_fn(output, target)``, scaled where there is a scaler; the loss, detached.

        Call :meth:`zero_grad` before it.
        """
        if self._stage is not None:
            return self._step_of_stage(self._stage, x, target, loss_fn, scaler)
        if len(target) > self._samples:
            if self._graphed is not None:
                self._graphed.release()
            self._graphed = capture_step(self.net, loss_fn, (x,), target)
            self._samples = len(target)
        assert self._graphed is not None
        loss = self._graphed(x, target=target, scaler=scaler)
        self.output = self._graphed.output
        self._count(was_replayed=self._graphed.was_replayed)
        return loss

    def _step_of_stage(
        self,
        graphed: GraphedStage,
        x: Any,
        target: Tensor,
        loss_fn: Callable[[Any, Tensor], Tensor],
        scaler: torch.amp.GradScaler | None,
    ) -> Tensor:
        def keep_output(output: Any, target: Tensor) -> Tensor:
            self.output = output
            return loss_fn(output, target)

        self.output, replays = None, graphed.replays
        loss = graphed.step(x, target=target, loss_fn=keep_output, scaler=scaler)
        self._count(was_replayed=graphed.replays > replays)
        return loss

    def zero_grad(self) -> None:
        """Before a step. In one process there is nothing to do: the step overwrites the gradients."""
        if self._stage is not None:
            self._stage.zero_grad()

    def _count(self, *, was_replayed: bool) -> None:
        if was_replayed:
            self.counts.replayed += 1
        else:
            self.counts.eager += 1
