"""A batch -> one step of the optimiser, in one process or over all ranks that train together."""

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from pararealize.distributed.gradient_norms import gradient_norm
from pararealize.distributed.stage import Stage
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import DataError, ModelError, MultigridError
from pararealize.table import quantity
from pararealize.train.run.score import correct, logits_of

from .captured_step import CapturedStep
from .recipe import Recipe
from .steps import MonitoredStep, TrainingStep, one_process_step

__all__ = ["StepResult", "Sums", "Update"]


@dataclasses.dataclass(slots=True)
class Sums:
    """Over some samples: the sum of their losses, how many of them were classified right, how many they are."""

    loss: float = 0.0
    right: float = 0.0
    count: float = 0.0

    def add(self, other: "Sums") -> None:
        """Add those of other samples."""
        self.loss, self.right, self.count = self.loss + other.loss, self.right + other.right, self.count + other.count

    @property
    def means(self) -> tuple[float, float]:
        """The mean loss, and the share of samples that were classified wrong."""
        return self.loss / self.count, (self.count - self.right) / self.count


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step found, over all ranks.

    Attributes:
        sums: over the batch's samples.
        gradient: norm of all gradients together, before clipping.
        fault: ``"loss"`` or ``"gradients"`` where these are not finite, and the optimiser took no step; else empty.
    """

    sums: Sums
    gradient: float
    fault: str


class Update:
    """Forward, backward, clipping, and the step of an optimiser.

    Args:
        net: the network, or this rank's part.
        recipe: which optimiser, loss and precision.
        processes: the ranks that train it.
        step: forward and backward, where the network has a way of its own.
        classes: how many logits it has to give at least.

    Raises:
        ModelError: there is nothing to train, or the step captures another network.
        MultigridError: the step's monitor watches another network.

    Attributes:
        optimizer: over the network's parameters.
        scaler: of the loss in float16.
        device: where batches go.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        processes: TrainingProcesses,
        step: TrainingStep | None = None,
        classes: int = 1,
    ) -> None:
        self.net, self.recipe, self.processes, self.classes = net, recipe, processes, classes
        trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if processes.group is None and not trainable:
            raise ModelError(
                f"nothing of this {type(net).__name__} can be trained: it has no parameters, or all are frozen; call "
                "requires_grad_() on those that are to be trained"
            )
        _check_step(step, net)
        self.device = net.device if isinstance(net, Stage) else next(net.parameters()).device
        self.step: TrainingStep = step or (net.step if isinstance(net, Stage) else one_process_step(net))
        self.optimizer = recipe.make_optimizer(trainable)
        self.scaler = _scaler(net, self.device) if recipe.amp == "float16" else None

    def __call__(self, x: Any, labels: torch.Tensor, lr: float, weight: float = 1.0) -> StepResult:
        """One step with this learning rate; all ranks call it, each with its share of the batch.

        Args:
            x: inputs.
            labels: of these.
            lr: the learning rate.
            weight: the share's size by the mean size of the shares of all copies, whose gradients are averaged.

        Raises:
            DataError: batch norms have a single value of a channel.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        try:
            loss, right_count = self._differentiate(x, labels, weight)
        except ValueError as error:  # of torch.nn.functional.batch_norm
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                f"a batch of {quantity(len(labels), 'sample')} gives a batch norm one value of each channel, which has "
                "no variance; take batches (batch_size) and a training part (count) of at least 2 samples"
            ) from error
        if self.scaler is not None:
            with self.processes.watched("the gradients' scale"):
                self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        count = len(labels) if self.processes.is_last else 0
        here = torch.tensor([loss.item() * count, right_count, count], dtype=torch.float64)
        sums = Sums(*self.processes.total(here).tolist())
        fault = ""
        if not math.isfinite(sums.loss):
            fault = "loss"
        elif not math.isfinite(norm) and (self.scaler is None or self.scaler.get_scale() <= 1):
            fault = "gradients"
        elif self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # the scaler leaves it out where gradients are not finite
            self.scaler.update()
        return StepResult(sums=sums, gradient=norm, fault=fault)

    def _differentiate(self, x: Any, labels: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        """Forward, loss and backward: the loss, and how many samples are right; 0 on ranks that have no logits."""
        right: list[torch.Tensor] = []  # a step may compute its loss more than once, to compare: the first counts

        def count_right(output: Any) -> None:
            logits = logits_of(output, labels, self.classes).detach()
            right.append(correct(logits, labels.to(logits.device)))

        def weighted_loss(output: Any, target: torch.Tensor) -> torch.Tensor:
            loss = self._loss(output, target)
            return loss if weight == 1 else loss * weight

        def loss_fn(output: Any, target: torch.Tensor) -> torch.Tensor:
            count_right(output)
            return weighted_loss(output, target)

        with self.autocast():
            if isinstance(self.step, CapturedStep):  # whose loss runs in Python when it is captured, and not again
                self.step.zero_grad()
                loss = self.step(x, target=labels, loss_fn=weighted_loss, scaler=self.scaler)
                if self.step.output is not None:
                    count_right(self.step.output)
            else:
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.step(x, target=labels, loss_fn=loss_fn, scaler=self.scaler)
        return loss / weight, right[0].item() if right else 0.0

    def _loss(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        return self.recipe.loss(logits_of(output, target, self.classes), target)

    def autocast(self) -> torch.autocast:
        """A context in which operations run in the recipe's precision."""
        dtype = None if self.recipe.amp is None else getattr(torch, self.recipe.amp)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _clip(self) -> float:
        """The norm of all gradients together; they are clipped where the recipe has a limit.

        Where the norm is not finite they stay as they are: clipping would spread NaN to all of them, and hide which
        parameter's gradient was the first.
        """
        limit = self.recipe.clip
        if isinstance(self.net, Stage):
            with self.processes.watched("the gradients' norm"):
                return self.net.clip_grad_norm_(math.inf if limit is None else limit).item()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = gradient_norm(p.grad for p in parameters if p.grad is not None)
        if limit is not None and bool(norm.isfinite()):
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm.item()


def _check_step(step: TrainingStep | None, net: nn.Module) -> None:
    """Refuse a step that was made for another network."""
    if isinstance(step, MonitoredStep) and step.monitor.net is not net:
        raise MultigridError(
            f"the step's monitor watches a {type(step.monitor.net).__name__} that is not the network to be trained "
            f"({type(net).__name__}); pass monitor.net to fit"
        )
    if isinstance(step, CapturedStep) and step.net is not net:
        raise ModelError(
            f"the step captures a {type(step.net).__name__} that is not the network to be trained "
            f"({type(net).__name__}); pass step.net to fit"
        )


def _scaler(net: nn.Module, device: torch.device) -> torch.amp.GradScaler:
    """A scaler of the loss; over several ranks one for all, which skips a step on all where it skips one on any."""
    if isinstance(net, Stage):
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type, process_group=net.group)
    return torch.amp.GradScaler(device.type)
