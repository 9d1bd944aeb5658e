"""A network, a data set and a recipe -> the same network, trained, its history, and the files of the run.

A run is a function of network, data, recipe and seed; nothing that happens between two steps depends on time. Where it
stands is one number, the steps taken: epoch and batch follow from it.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import nn

from pararealize.argument_types import typed_arguments
from pararealize.data.dataset import Dataset
from pararealize.distributed.checkpoint.state import own_tensors, save_state
from pararealize.distributed.checkpoint.weights_plan import plan_of
from pararealize.distributed.training_processes import processes_of
from pararealize.errors import CheckpointError, DataError, ModelError, RecipeError, TrainingError
from pararealize.manifest import tensors_digest
from pararealize.random_state import derived_seed, preserve_state, seed_all
from pararealize.train.run.checkpoint import gather_run_state, load_run_state, write_run_state
from pararealize.train.run.history import EpochRow, History, Row, StepRow, from_line, to_line
from pararealize.train.run.intact_checkpoint import METRICS, TIMES
from pararealize.train.run.plain_state import PlainState, read_plain_state
from pararealize.train.run.progress import Progress, RateMeter
from pararealize.train.run.run_folder import RunFolder
from pararealize.train.run.saved_network import WEIGHTS, write_saved
from pararealize.train.run.score import Score, as_input, enter_train_mode, evaluate, input_dtype
from pararealize.train.run.tensorboard import Board

from .nonfinite import backward_fault, forward_fault
from .recipe import Recipe, he_weights
from .request import RunSettings, agree_on_request, describe_request
from .steps import MonitoredStep, TrainingStep
from .update import StepResult, Sums, Update

__all__ = ["fit"]


@typed_arguments(RecipeError, net=ModelError, data=DataError)
def fit(
    net: nn.Module,
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    resume_from: Literal["last", "previous"] = "last",
    force: bool = False,
    seed: int = 0,
    report: Callable[[Progress], None] | None = None,
    step: TrainingStep | None = None,
    log_every: int = 10,
    checkpoint_every: int | None = None,
    keep: int = 2,
    tensorboard: bool = False,
    about: Mapping[str, Any] | None = None,
) -> History:
    """Train a network on the training part of a data set, and score it on the test part after every epoch.

    Over several ranks, all of them call it, each with its :class:`~pararealize.Stage`; each of several data-parallel
    copies gets its share of every batch.

    Args:
        net: any module from inputs to logits ``(batch, classes)``: an original, a parareal network, a way to run one, a
            rank's stage. It is trained where it is, in train mode, and left so; where it is in train mode already,
            modules within that are in eval mode, such as frozen batch norms, stay so.
        data: batches of inputs and labels; order and augmentation follow from its own seed.
        recipe: optimiser, schedule and so on; left out, the paper's.
        folder: where metrics, checkpoints, curves and the trained weights go; on a disk that all ranks see. It must not
            exist yet.
        resume: go on from the folder's last checkpoint, where there is one. On one machine's CPU, and with as many
            ranks as before, the run ends with the very bits of one that never stopped.
        resume_from: ``"previous"`` goes on, too, and where the last checkpoint is damaged, from the newest before it
            that is not; ``"last"`` refuses that.
        force: replace an earlier run in the folder.
        seed: of random numbers drawn in training (dropout) and of weights that the recipe draws. The caller's random
            state stays as found.
        report: called after every step, on the rank that writes.
        step: forward and backward, where a network has a way of its own; a stage has. With a
            :class:`~pararealize.train.steps.MonitoredStep`, the monitor's state is in the checkpoints, and what it
            changed in the history and the metrics.
        log_every: over how many steps a row of the metrics takes its means.
        checkpoint_every: steps between checkpoints; one at the end of every epoch is written in any case.
        keep: how many checkpoints stay; older ones are removed.
        tensorboard: write event files, too.
        about: what else the run is asked for, as JSON knows it; written to ``run.json``, and a run that is resumed has
            to be asked for the same.

    Returns:
        The history; ``history.score`` is the last score.

    Raises:
        TrainingError: the loss or the gradients are not finite any more; it says at which step and where it began.
        CheckpointError: a run is to be resumed that was asked for something else, the checkpoint is damaged (it says
            whether an earlier one is not), or the network's state is more than tensors and cannot be kept.
        OutputError: the folder exists, another process writes into it, or a file cannot be written; the last checkpoint
            stays.
        RankError: another rank failed, died or hung.
        AgreedError: the ranks were asked for different things, such as other recipes; nothing was changed or written.
        ExampleError: the network gives no logits, or of fewer classes than the data has.
        ModelError: there is nothing to train.
        MultigridError: the step's monitor watches another network.

    Example:
        >>> from pararealize import Recipe, pararealize
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3, coarse="linear")
        >>> history = fit(net, digits(image_size=8), Recipe(epochs=1, lr=0.05))
        >>> len(history.epochs), history.score.count
        (1, 360)
    """
    settings = RunSettings(seed=seed, log_every=log_every, checkpoint_every=checkpoint_every, keep=keep)
    training = _Training(net, data, Recipe() if recipe is None else recipe, settings, step=step, report=report)
    with ExitStack() as stack:
        stack.enter_context(preserve_state(parameter.device for parameter in net.parameters()))
        stack.push(training.undo)
        try:
            previous = resume_from == "previous"
            where = None if folder is None else str(Path(folder).absolute())
            choices = {"resume": resume, "resume_from": resume_from, "force": force, "tensorboard": tensorboard}
            training.agree(folder=where, about=about or {}, **choices)
            training.begin(folder, about or {}, resume=resume or previous, force=force, previous=previous)
            if training.folder is not None and tensorboard and training.processes.is_first:
                training.board = Board(training.folder.path / "tensorboard", training.step)
                stack.callback(training.board.close)
            training.train()
            training.end()
        except BaseException as error:
            training.processes.report_failure(error)
            raise
    return training.history


class _Training:
    """A training run between two steps, on one rank.

    Steps, scores, checkpoints, and what ``processes`` gathers or has the first rank do, are collective: every rank
    calls each of them, in the same order. Conditions around them depend on what all ranks know alike, never on
    ``processes.is_first``.

    Attributes:
        step: how many steps are taken, of ``steps``.
        dtype: that inputs get, where the network has one.
        row_sums: over the samples since the last row of the metrics.
        epoch_sums: over the samples since the epoch began.
        event_count: how many of the monitor's events are in the history, or are older than this run.
        folder, board: the files of the run and of TensorBoard, where there are any; only the first rank writes.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Dataset,
        recipe: Recipe,
        settings: RunSettings,
        *,
        step: TrainingStep | None,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.net, self.data, self.recipe, self.settings, self.report = net, data, recipe, settings, report
        self.processes = processes_of(net)
        self.update = Update(net, recipe, self.processes, step, data.classes)
        self.monitor = step.monitor if isinstance(step, MonitoredStep) else None
        self.event_count = 0 if self.monitor is None else len(self.monitor.events)
        self.step, self.steps = 0, recipe.epochs * data.steps
        self.dtype: torch.dtype | None = None
        self.row_sums, self.epoch_sums = Sums(), Sums()
        self.history, self.rate_meter = History(), RateMeter()
        self.folder: RunFolder | None = None
        self.board: Board | None = None

    # Beginning and end -----------------------------------------------------------------------------------------------

    def agree(self, **facts: object) -> None:
        """Refuse ranks that are asked for different things."""
        agree_on_request(self.net, self.data, self.recipe, self.settings, self.processes, monitor=self.monitor, **facts)

    def begin(
        self,
        path: str | os.PathLike[str] | None,
        about: Mapping[str, Any],
        *,
        resume: bool,
        force: bool,
        previous: bool,
    ) -> None:
        """Draw weights where the recipe says so, or take everything from the folder's last checkpoint."""
        enter_train_mode(self.net)
        self.dtype = input_dtype(self.net)
        self.seed_random("begin")
        if path is not None:
            self.folder = folder = RunFolder(path)
            request = describe_request(
                self.net, self.data, self.recipe, self.settings, self.processes, about=about, monitor=self.monitor
            )
            begin = partial(
                folder.begin,
                request,
                lambda: tensors_digest(own_tensors(self.net)),
                files={} if (plan := plan_of(self.net)) is None else {"plan.json": plan.to_json()},
                resume=resume,
                force=force,
                previous=previous,
            )
            last = self.processes.on_first(self.net, begin)
            if last is not None:
                self.resume(folder, last)
                return
        if self.recipe.initialise == "he":
            he_weights(self.net, self.settings.seed)

    def seed_random(self, *key: object) -> None:
        """Have the random numbers of this rank follow from the run's seed, the key and the rank."""
        seed_all(derived_seed(self.settings.seed, " ".join(map(str, (*key, self.processes.rank)))))

    def resume(self, folder: RunFolder, checkpoint: Path) -> None:
        """Take everything from a checkpoint."""
        plain = read_plain_state(checkpoint)
        self.check_place(checkpoint, plain)
        self.step = plain.step
        self.row_sums, self.epoch_sums = Sums(*plain.recent), Sums(*plain.whole)
        if not load_run_state(checkpoint, plain, self.net, self.update.optimizer, self.update.scaler, self.processes):
            self.seed_random("step", self.step)  # written by another number of ranks: there is no state for each
        if self.monitor is not None:
            self.monitor.load_state_dict(plain.monitor or {})
            self.event_count = len(self.monitor.events)
        self.processes.on_first(self.net, lambda: folder.truncate(plain.lines))
        self.history.rows = [from_line(line) for line in folder.lines(METRICS)]
        self.history.score = plain.score

    def check_place(self, checkpoint: Path, plain: PlainState) -> None:
        """Refuse a checkpoint that stands where this run never is."""
        each = self.data.steps
        if plain.step > self.steps or (plain.epoch, plain.batch) != divmod(plain.step, each):
            raise CheckpointError(
                f"{str(checkpoint)!r} stands at step {plain.step}, epoch {plain.epoch}, batch {plain.batch}, and this "
                f"run has {self.steps} steps, {each} an epoch; it is damaged, take an earlier one"
            )

    def save(self) -> None:
        """Write a checkpoint."""
        folder = self.folder
        if folder is None:
            return
        facts = {
            "step": self.step,
            "epoch": self.step // self.data.steps,
            "batch": self.step % self.data.steps,
            "recent": list(dataclasses.astuple(self.row_sums)),
            "whole": list(dataclasses.astuple(self.epoch_sums)),
            "score": None if self.history.score is None else dataclasses.asdict(self.history.score),
            "lines": {
                name: dataclasses.asdict(fact)
                for name, fact in self.processes.on_first(self.net, folder.line_files).items()
            },
            **({} if self.monitor is None else {"monitor": self.monitor.state_dict()}),
        }
        with self.processes.watched("the parts of a checkpoint"):
            state = gather_run_state(self.net, self.update.optimizer, self.update.scaler, self.processes, facts)
        keep = self.settings.keep
        self.processes.on_first(
            self.net,
            lambda: folder.save(self.step, partial(write_run_state, state=state, run=folder.run), keep=keep),
        )

    def end(self) -> None:
        """Write the weights and the curves."""
        folder = self.folder
        if folder is not None:
            self.processes.on_first(self.net, folder.check_place)
            with self.processes.watched("the weights", works=True):
                save_state(self.net, folder.path / WEIGHTS)
            write_saved(self.net, folder.path, self.processes)
            self.processes.on_first(self.net, lambda: _draw(self.history, folder))

    def undo(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Leave no folder of a run that failed before its first step was taken; let other processes into it."""
        if self.folder is not None and self.processes.is_first:
            if error is not None and self.step == 0:
                self.folder.undo()
            self.folder.close()

    # Steps -----------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Take all steps that remain."""
        processes, each = self.processes, self.data.steps
        sizes = self.data.batch_sizes(processes.replicas)
        for epoch in range(self.step // each, self.recipe.epochs):
            start = self.step % each
            batches = self.data.epoch(epoch, start=start, rank=processes.replica, world=processes.replicas)
            for (x, labels), size in zip(batches, sizes[start:], strict=True):
                self.advance(x, labels, epoch + 1, weight=processes.replicas * len(labels) / size)

    def advance(self, x: Any, labels: torch.Tensor, epoch: int, *, weight: float) -> None:
        """Take a step, and do what follows it: rows, a score, a checkpoint, a report. Epochs count from 1 here."""
        start = time.perf_counter()
        lr = self.recipe.lr_at(self.step, steps=self.steps)
        x = as_input(x, self.update.device, self.dtype)
        result = self.update(x, labels, lr, weight)
        if result.fault:
            self.fail(result, x)
        self.step += 1
        self.rate_meter.add(time.perf_counter() - start, int(result.sums.count))
        self.row_sums.add(result.sums)
        self.epoch_sums.add(result.sums)
        loss, error = self.epoch_sums.means
        events = () if self.monitor is None else tuple(self.monitor.events[self.event_count :])
        self.event_count += len(events)
        rows: list[Row] = list(events)
        if self.step % self.settings.log_every == 0:
            rows.append(self.end_row(epoch, lr, result.gradient))
        score = None
        if self.step % self.data.steps == 0:
            score = self.history.score = evaluate(self.net, self.data)
            rows.append(self.end_epoch(epoch, lr, score))
        self.add_rows(rows)
        every = self.settings.checkpoint_every
        if score is not None or (every is not None and self.step % every == 0):
            self.save()
        if self.report is not None and self.processes.is_first:
            progress = Progress(
                step=self.step,
                steps=self.steps,
                epoch=epoch,
                epochs=self.recipe.epochs,
                loss=loss,
                error=error,
                lr=lr,
                rate=self.rate_meter.rate,
                left=self.rate_meter.left(self.steps - self.step),
                score=score,
                events=events,
            )
            self.report(progress)

    def end_row(self, epoch: int, lr: float, gradient: float) -> StepRow:
        """The row of the steps since the last one; the next begins."""
        loss, error = self.row_sums.means
        self.row_sums = Sums()
        norm = gradient if math.isfinite(gradient) else None  # JSON knows no infinity
        return StepRow(step=self.step, epoch=epoch, lr=lr, loss=loss, error=error, gradient=norm)

    def end_epoch(self, epoch: int, lr: float, score: Score) -> EpochRow:
        """The row of the epoch; the next begins."""
        loss, error = self.epoch_sums.means
        self.epoch_sums = Sums()
        test = {"test_loss": score.loss, "test_error": score.error}
        return EpochRow(step=self.step, epoch=epoch, lr=lr, loss=loss, error=error, **test)

    def add_rows(self, rows: list[Row]) -> None:
        """Add rows to the history and to the files."""
        self.history.rows += rows
        if rows and self.folder is not None and self.processes.is_first:
            meter = self.rate_meter
            self.folder.append(METRICS, [to_line(row) for row in rows])
            times = {"step": self.step, "seconds": round(meter.seconds, 3), "rate": round(meter.rate, 2)}
            self.folder.append(TIMES, [json.dumps(times)])
            if self.board is not None:
                for row in rows:
                    self.board.add(row, meter.rate)

    def fail(self, result: StepResult, x: Any) -> NoReturn:
        """Find where the loss or the gradients became non-finite first, and raise."""
        if result.fault == "loss":
            what, value, way = "loss", result.sums.loss / result.sums.count, "the forward pass"
            with self.update.autocast():
                fault = forward_fault(self.net, x, self.processes)
        else:
            what, value, way = "gradients' norm", result.gradient, "the gradients"
            fault = backward_fault(self.net, self.processes)
        last = None if self.folder is None else self.folder.last_checkpoint()
        checkpoint = "there is no checkpoint" if last is None else f"the last checkpoint is {str(last)!r}"
        raise TrainingError(
            f"the {what} of step {self.step + 1} (epoch {self.step // self.data.steps + 1}, batch "
            f"{self.step % self.data.steps + 1}) is {value}: {way} became non-finite first, beginning in {fault}; "
            f"{checkpoint}; lower the learning rate, let it rise at first (warmup), or clip the gradients (clip)",
            self.step + 1,
            fault.where,
        )


def _draw(history: History, folder: RunFolder) -> None:
    from pararealize.train.run.curves import draw_curves  # matplotlib is slow to import

    draw_curves(history, folder.path / "curves.svg", title=folder.path.name)
