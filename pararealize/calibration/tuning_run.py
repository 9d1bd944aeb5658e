"""A network, its teacher, batches -> TuningRun: steps of distillation, and the best weights on batches held out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.errors import CalibrationError, PararealizeError, TrainingError
from pararealize.network.module import PararealModule
from pararealize.restacking.batchnorm import running_norms
from pararealize.tracing.call_signature import CallSignature
from pararealize.train.recipe import Recipe

from .batch import labels_of
from .graph_run import GraphRun, RunValues
from .interface_errors import SquareSums
from .losses import OutputLoss, relative_error
from .masks import MaskChoice, mask_of, unmasked
from .output_kind import named_leaves
from .teacher import Teacher, TeacherValues
from .trained_parameters import TrainedParameters
from .tuning_data import TuningData
from .tuning_report import TuningRow

__all__ = ["TuningJob", "TuningRun", "trained_norms"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuningJob:
    """What a fine-tuning does.

    Attributes:
        net: the student, in eval mode.
        teacher: what it should become.
        data: batches to train on and to choose by.
        loss: of the outputs.
        match: weight of the ends of windows in the loss.
        mask: which positions of a batch count.
        recipe: optimiser, rate, schedule, clipping, precision.
        steps: how many steps there are in all.
        every: steps between two looks at the batches held out.
        say: called with a line of text as the work goes on.
    """

    net: PararealModule
    teacher: Teacher
    data: TuningData
    loss: OutputLoss
    match: float
    mask: MaskChoice
    recipe: Recipe
    steps: int
    every: int
    say: Callable[[str], None]

    def mask_of(self, batch: Any, values: RunValues) -> Tensor | None:
        """The positions of a batch that count."""
        space = self.net.plan.windows[0].segments[-1].y
        return mask_of(batch, self.mask, values.ends[0], space.channel + 1, CallSignature.of_graph(self.net.graph))

    def output_loss(self, batch: Any, values: RunValues, teacher: TeacherValues) -> Tensor:
        """The loss of the outputs."""
        return self.loss(values.output, teacher.output, batch, labels_of(batch), self.mask_of(batch, values))

    def training_loss(self, batch: Any, values: RunValues, teacher: TeacherValues) -> Tensor:
        r"""That, and :math:`\mu \frac1M \sum_m \|w_m - u_m\|^2 / \|u_m\|^2`."""
        loss = self.output_loss(batch, values, teacher)
        if not self.match:
            return loss
        mask, apart = self.mask_of(batch, values), []
        for w, u in zip(values.ends, teacher.ends, strict=True):
            wide = torch.promote_types(w.dtype, torch.float32)
            apart.append(relative_error(*(unmasked(of, mask).to(device=loss.device, dtype=wide) for of in (w, u))))
        return loss + self.match * torch.stack(apart).mean()


class TuningRun:
    """Steps from the weights that a network has, and the best of them.

    Args:
        job: what is done.
        trained: the parameters that are trained.
        norms: the batch norms whose statistics may follow.
        by_batch: whether these normalise by the batch, and their statistics follow.

    Attributes:
        step: how many steps are taken.
        rows: losses at every look at the batches held out.
        best: the smallest loss there, and the step behind which it was.
    """

    def __init__(self, job: TuningJob, trained: TrainedParameters, norms: list[nn.Module], *, by_batch: bool) -> None:
        self.job, self.trained, self.norms, self.by_batch = job, trained, norms, by_batch
        self.step, self.rows = 0, list[TuningRow]()
        self.best, self._best_state = (math.inf, 0), self.state()
        self._forward, self._batches = GraphRun(job.net), job.data.training()
        leaves = trained.leaves
        least = max(torch.finfo(leaf.dtype).tiny for leaf in leaves)
        self._optimizer = job.recipe.make_optimizer(leaves)
        for group in self._optimizer.param_groups:
            if "eps" in group:
                group["eps"] = max(group["eps"], least)
        self._losses: list[float] = []

    def state(self) -> list[Tensor]:
        """Copies of all that changes."""
        return [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        """Give the network such copies."""
        for tensor, value in zip(self._tensors(), state, strict=True):
            tensor.copy_(value)

    def load_best(self) -> None:
        """Give the network the weights with the smallest loss on the batches held out."""
        self.load(self._best_state)

    def advance(self, stop: int) -> None:
        """Take steps up to this one.

        Raises:
            TrainingError: the loss or a gradient is not finite.
        """
        with self.trained.with_gradients(), torch.enable_grad():
            while self.step < stop:
                loss = self._take_step(next(self._batches))
                self.step += 1
                self._losses.append(loss)
                job = self.job
                job.say(f"fine-tuning: step {self.step} of {job.steps}, loss {loss:.4g}")
                if self.step % job.every == 0 or self.step in (stop, job.steps):
                    self.look()

    @torch.no_grad()
    def look(self) -> float:
        """The loss on the batches held out; the weights are remembered where it is the smallest so far."""
        job, loss = self.job, self._held_out_loss()
        if loss < self.best[0] or not self.rows:
            self.best, self._best_state = (loss, self.step), self.state()
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        lr = job.recipe.lr_at(max(self.step - 1, 0), steps=job.steps)
        if not self.rows or self.rows[-1].step < self.step:
            self.rows.append(TuningRow(step=self.step, lr=lr, loss=mean, held_out=loss))
        self._losses.clear()
        return loss

    def _held_out_loss(self) -> float:
        """The outputs' loss as of one batch of all that is held out; batches of which nothing counts are left out."""
        job, total, count, squares = self.job, 0.0, 0, dict[Any, SquareSums]()
        for batch in job.data.tests():
            values = self._forward(batch)
            mask = job.mask_of(batch, values)
            if mask is not None and not bool(mask.any()):
                continue
            teacher = job.teacher(batch)
            if job.loss.function is None and job.loss.name == "mse":  # a ratio of sums, no mean
                wanted = dict(named_leaves(teacher.output))
                for path, value in named_leaves(values.output):
                    pair = (job.loss.kind.counted(path, of, mask) for of in (value, wanted[path]))
                    squares.setdefault(path, SquareSums()).add(*pair)
            elif size := _compared(job.loss, values, mask):
                total += size * float(job.output_loss(batch, values, teacher))
                count += size
        if not squares:
            return total / max(count, 1)
        least = torch.finfo(torch.float32).tiny
        return sum(sums.error / max(sums.whole, least) for sums in squares.values()) / len(squares)

    def _take_step(self, batch: Any) -> float:
        job, recipe = self.job, self.job.recipe
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.lr_at(self.step, steps=job.steps)
        self.trained.clear()
        kind = next(job.net.parameters()).device.type
        dtype = None if recipe.amp is None else getattr(torch, recipe.amp)
        try:
            for norm in self.norms:
                norm.training = self.by_batch
            with nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype):
                teacher = job.teacher(batch)
                values = self._forward(batch)
                loss = job.training_loss(batch, values, teacher)
        except ValueError as error:
            if not self.by_batch or isinstance(error, PararealizeError):
                raise
            raise CalibrationError(
                f"a batch cannot be normalised by itself: {error}; pass larger batches, or norms='keep'"
            ) from error
        finally:
            for norm in self.norms:
                norm.training = False
        self._check(loss, "loss")
        if not loss.requires_grad:
            if job.loss.function is not None and any(leaf.requires_grad for _, leaf in named_leaves(values.output)):
                raise CalibrationError(
                    f"the loss {job.loss.name} gives a number without gradients, though the outputs have them; "
                    "compute it from the first output, without detach, item or torch.tensor"
                )
            return float(loss.detach())  # of nothing that is trained
        loss.backward()
        self.trained.pass_gradients()
        leaves = [leaf for leaf in self.trained.leaves if leaf.grad is not None]
        length = nn.utils.clip_grad_norm_(leaves, math.inf if recipe.clip is None else recipe.clip)
        self._check(length, "norm of the gradients")
        self._optimizer.step()
        self.trained.write()
        self.trained.clear()
        return float(loss.detach())

    def _check(self, value: Tensor, what: str) -> None:
        if not bool(torch.isfinite(value)):
            raise TrainingError(
                f"the {what} is {value.item()} in step {self.step + 1} of {self.job.steps} of fine-tuning; the network "
                f"has its best weights so far again: pass a smaller lr than {self.job.recipe.lr:g}",
                self.step + 1,
                what,
            )

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.trained.moved
        for each in self.trained.low_rank:
            yield from (each.A, each.B)
        for norm in self.norms:
            yield from (buffer for buffer in norm.buffers(recurse=False))


def _compared(loss: OutputLoss, values: RunValues, mask: Tensor | None) -> int:
    """How many vectors of a batch's first output, or rows of its scores, count: a loss is a mean over them."""
    leaves = dict(named_leaves(values.output))
    scores = loss.kind.scores[0] if loss.name in ("kl", "cross_entropy") and loss.function is None else None
    first = scores.rows(leaves[scores.path]) if scores is not None else next(iter(leaves.values()), None)
    if first is None or not first.ndim:  # no number a sample
        return len(values.ends[0])
    rows = unmasked(first, mask)
    return rows.shape[:-1].numel() if rows.ndim > 1 else len(rows)


def trained_norms(net: nn.Module, trained: TrainedParameters) -> list[nn.Module]:
    """The batch norms whose statistics may follow: all where everything is trained, else those whose weights are."""
    moved = set(trained.moved)
    return [
        norm
        for norm in running_norms(net)
        if trained.text == "all" or any(parameter in moved for parameter in norm.parameters(recurse=False))
    ]
