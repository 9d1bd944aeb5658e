"""A batch -> one step of the optimiser, in one process or over all ranks that train together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from pararealize.distributed.stage import Stage
from pararealize.distributed.world import Team
from pararealize.errors import ModelError
from pararealize.train.run.score import correct, logits_of

from .recipe import Recipe
from .steps import Step, one_process_step

__all__ = ["Sums", "Taken", "Update"]


@dataclasses.dataclass(slots=True)
class Sums:
    """Over some samples: their losses, how many of them were told right, how many they are."""

    loss: float = 0.0
    right: float = 0.0
    count: float = 0.0

    def add(self, other: Sums) -> None:
        """Take other samples in."""
        self.loss, self.right, self.count = self.loss + other.loss, self.right + other.right, self.count + other.count

    @property
    def means(self) -> tuple[float, float]:
        """The mean loss, and the share of samples that were taken for another class."""
        return self.loss / self.count, (self.count - self.right) / self.count


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a batch gave, over all ranks.

    Attributes:
        sums: of its samples.
        gradient: norm of all gradients together, before clipping.
        fault: ``"loss"`` or ``"gradients"``, where these are not finite: the weights are as they were then.
    """

    sums: Sums
    gradient: float
    fault: str = ""


class Update:
    """Forward, backward, clipping, and the step of an optimiser.

    Args:
        net: the network, or this rank's part.
        recipe: which optimiser, loss and precision.
        team: who trains it.
        step: forward and backward, where the network has a way of its own.
        classes: how many logits it has to give at least.

    Raises:
        ModelError: there is nothing to train.

    Attributes:
        optimizer: over the network's parameters.
        scaler: of the loss in float16.
        device: where batches go.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, team: Team, step: Step | None = None, classes: int = 1) -> None:
        self.net, self.recipe, self.team, self.classes = net, recipe, team, classes
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if team.group is None and not trained:
            raise ModelError(
                f"nothing of this {type(net).__name__} can be trained: it has no parameters, or all are frozen; call "
                "requires_grad_() on those that are to be trained"
            )
        self.device = net.device if isinstance(net, Stage) else next(net.parameters()).device
        self.step: Step = step or (net.step if isinstance(net, Stage) else one_process_step(net))
        self.optimizer = recipe.make_optimizer(trained)
        self.scaler = _scaler(net, self.device) if recipe.amp == "float16" else None

    def __call__(self, x: torch.Tensor, labels: torch.Tensor, lr: float) -> Taken:
        """One step with this learning rate; all ranks call it, each with its share of the batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        right: list[torch.Tensor] = []

        def loss_fn(output: Any, target: torch.Tensor) -> torch.Tensor:
            logits = logits_of(output, target, self.classes)
            target = target.to(logits.device)
            right.append(correct(logits.detach(), target))
            return self.recipe.loss(logits, target)

        with self.autocast():
            loss = self.step(x, target=labels, loss_fn=loss_fn, scaler=self.scaler)
        if self.scaler is not None:
            with self.team.waiting("the gradients' scale"):
                self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        count = len(labels) if self.team.is_last else 0
        told = right[0] if right else torch.zeros(())  # a step may compute its loss once more, to compare
        mine = torch.stack([loss.double().cpu() * count, told.double().cpu()])
        sums = Sums(*self.team.total(torch.cat([mine, torch.tensor([count], dtype=torch.float64)])).tolist())
        if not math.isfinite(sums.loss):
            return Taken(sums=sums, gradient=norm, fault="loss")
        if not math.isfinite(norm) and (self.scaler is None or self.scaler.get_scale() <= 1):
            return Taken(sums=sums, gradient=norm, fault="gradients")
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # which is passed over where gradients are not finite
            self.scaler.update()
        return Taken(sums=sums, gradient=norm)

    def autocast(self) -> torch.autocast:
        """In the recipe's precision."""
        name = self.recipe.amp
        kind = None if name is None else getattr(torch, name)
        return torch.autocast(self.device.type, kind, enabled=name is not None)

    def _clip(self) -> float:
        """The norm of all gradients together, which are clipped where the recipe says so.

        Where it is not finite they stay as they are, so that those that it comes from can be told from the others.
        """
        limit = self.recipe.clip
        if isinstance(self.net, Stage):
            with self.team.waiting("the gradients' norm"):
                return self.net.clip_grad_norm_(math.inf if limit is None else limit).item()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None and bool(norm.isfinite()):
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm.item()


def _scaler(net: nn.Module, device: torch.device) -> torch.amp.GradScaler:
    if isinstance(net, Stage):
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type, process_group=net.group)
    return torch.amp.GradScaler(device.type)
