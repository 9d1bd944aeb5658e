"""A network, a data set and a recipe -> the same network, trained, its history, and the files of the run.

    position    how many steps are behind; epoch and batch follow      here
    Recipe      optimiser, learning rate, loss                         recipe.py
    Update      a batch -> one step of the optimiser                   update.py
    Team        who trains together: sums, facts, faults               team.py
    RunFolder   run.json, metrics, checkpoints that are whole          run_folder.py
    RunState    what a checkpoint holds                                run_state.py
    Fault       where a loss or a gradient became non-finite           nonfinite.py

A run is a function of network, data, recipe and seed; nothing that happens between two steps depends on time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from pararealize.data.dataset import Dataset
from pararealize.distributed.checkpoint.state import check_tensors, save_state
from pararealize.distributed.world import team_of
from pararealize.errors import MultigridError, RecipeError, TrainingError
from pararealize.plan.plan import Plan
from pararealize.random_state import derived_seed, preserve_state, seed_all
from pararealize.train.run.folder import METRICS, TIMES, RunFolder
from pararealize.train.run.history import EpochRow, History, Row, StepRow, from_line, to_line
from pararealize.train.run.progress import Clock, Progress
from pararealize.train.run.score import Score, evaluate
from pararealize.train.run.state import gather_run_state, load_run_state, read_run_state, write_run_state
from pararealize.train.run.tensorboard import Board

from .nonfinite import backward_fault, forward_fault
from .recipe import Recipe, he_weights
from .steps import MonitoredStep, Step
from .update import Sums, Taken, Update

__all__ = ["evaluate", "fit"]


def fit(
    net: nn.Module,
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    seed: int = 0,
    report: Callable[[Progress], None] | None = None,
    step: Step | None = None,
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
            rank's stage. It is trained where it is, in train mode, and left so.
        data: batches of inputs and labels; order and augmentation follow from its own seed.
        recipe: optimiser, schedule and so on; the paper's unless told.
        folder: where metrics, checkpoints, curves and the trained weights go; on a disk that all ranks see. It is made,
            and must not be there yet.
        resume: go on from the folder's last checkpoint, where there is one. On one machine's CPU, and with as many
            ranks as before, the run ends with the very bits of one that never stopped.
        force: replace an earlier run in the folder.
        seed: of random numbers drawn in training (dropout) and of weights that the recipe draws. The caller's random
            state stays as found.
        report: called after every step, on the rank that writes.
        step: forward and backward, where a network has a way of its own; a stage has. Of a
            :class:`~pararealize.train.steps.MonitoredStep` the monitor's state is in the checkpoints, and what it changed
            in the history and the metrics.
        log_every: steps in a row of the metrics.
        checkpoint_every: steps between checkpoints; one at the end of every epoch is written in any case.
        keep: how many checkpoints are kept.
        tensorboard: write event files, too.
        about: what else the run was asked for, as JSON knows it; kept in ``run.json`` and compared on going on.

    Returns:
        The history; ``history.score`` is the last score.

    Raises:
        TrainingError: the loss or the gradients are not finite any more; it says at which step and where it began.
        CheckpointError: a run is to be resumed that was asked for something else, a checkpoint is damaged, or the
            network's state is more than tensors and cannot be kept.
        OutputError: the folder is there, or a file cannot be written; the last checkpoint stays.
        RankError: another rank failed, died or hung.
        ExampleError: the network gives no logits, or of fewer classes than the data has.
        ModelError: there is nothing to train.
        MultigridError: the step's monitor watches another network.

    Example:
        >>> from pararealize import Recipe, pararealize
        >>> from pararealize.data.catalogue import digits
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3, coarse="linear")
        >>> history = fit(net, digits(image_size=8), Recipe(epochs=1, lr=0.05))
        >>> len(history.epochs), history.score.count
        (1, 360)
    """
    for name, value in (("log_every", log_every), ("checkpoint_every", checkpoint_every or 1), ("keep", keep)):
        if value < 1:
            raise RecipeError(f"{name} is {value}; pass an integer of at least 1")
    run = _Run(net, data, Recipe() if recipe is None else recipe, seed, step)
    run.log_every, run.checkpoint_every, run.keep, run.report = log_every, checkpoint_every, keep, report
    with ExitStack() as stack:
        stack.enter_context(preserve_state(parameter.device for parameter in net.parameters()))
        stack.push(run.forget)
        try:
            run.begin(folder, about or {}, resume=resume, force=force)
            if run.folder is not None and tensorboard and run.team.is_first:
                run.board = Board(run.folder.path / "tensorboard", run.taken)
                stack.callback(run.board.close)
            run.train()
            run.end()
        except BaseException as error:
            run.team.tell(error)
            raise
    return run.history


class _Run:
    """A run between two steps.

    Attributes:
        taken: steps behind.
        recent, whole: sums since the last row and since the epoch began.
        told: events of the monitor that are in the history, or were there before.
    """

    def __init__(self, net: nn.Module, data: Dataset, recipe: Recipe, seed: int, step: Step | None) -> None:
        self.net, self.data, self.recipe, self.seed = net, data, recipe, seed
        self.team = team_of(net)
        self.update = Update(net, recipe, self.team, step, data.classes)
        self.monitor = step.monitor if isinstance(step, MonitoredStep) else None
        if self.monitor is not None and self.monitor.net is not net:
            raise MultigridError(
                f"the step's monitor watches a {type(self.monitor.net).__name__} that is not the network to be trained "
                f"({type(net).__name__}); pass monitor.net to fit"
            )
        self.told = 0 if self.monitor is None else len(self.monitor.events)
        self.steps = recipe.epochs * data.steps
        self.taken = 0
        self.recent, self.whole = Sums(), Sums()
        self.history, self.clock = History(), Clock()
        self.folder: RunFolder | None = None
        self.board: Board | None = None
        self.report: Callable[[Progress], None] | None = None
        self.log_every, self.keep = 10, 2
        self.checkpoint_every: int | None = None

    # Beginning and end -----------------------------------------------------------------------------------------------

    def begin(
        self, path: str | os.PathLike[str] | None, about: Mapping[str, Any], *, resume: bool, force: bool
    ) -> None:
        """Draw what is to be drawn, or take everything from a checkpoint."""
        self.net.train()
        self.seed_random("begin")
        if path is not None:
            self.folder = folder = RunFolder(path)
            asked = self.asked(about)
            last = self.team.share(self.net, lambda: folder.begin(asked, resume=resume, force=force))
            self.share_files(lambda: self._write_plan(folder))
            if last is not None:
                self.go_on(folder, last)
                return
        if self.recipe.initialise == "he":
            he_weights(self.net, self.seed)

    def seed_random(self, *key: object) -> None:
        """Random numbers of this rank from here on."""
        seed_all(derived_seed(self.seed, " ".join(map(str, (*key, self.team.rank)))))

    def asked(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What the run is asked for: what has to be the same where it goes on."""
        shapes: dict[str, list[int]] = {}
        for found in self.team.gather({name: list(value.shape) for name, value in check_tensors(self.net).items()}):
            shapes |= found
        data, plan = self.data, _plan(self.net)
        labels = hashlib.sha256(data.labels.numpy().tobytes() + data.test_labels.numpy().tobytes()).hexdigest()[:16]
        return {
            "about": dict(about),
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "log_every": self.log_every,
            "data": {
                "name": data.name,
                "samples": [data.train_count, data.test_count],
                "shape": list(data.shape),
                "classes": data.classes,
                "batch_size": data.batch_size,
                "seed": data.seed,
                "augmentation": None if data.augmentation is None else str(data.augmentation),
                "labels": labels,
            },
            "network": {
                "tensors": len(shapes),
                "values": sum(math.prod(shape) for shape in shapes.values()),
                "digest": hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()[:16],
            },
            "plan": None
            if plan is None
            else {
                "n": plan.n,
                "segments begin at": [segment.first_block for segment in plan.segments],
                "coarse blocks": [row.kind for row in plan.coarse_blocks],
                "adapters read": plan.source,
            },
            **({} if self.monitor is None else {"monitor": self.monitor.settings}),
        }

    def _write_plan(self, folder: RunFolder) -> None:
        plan = _plan(self.net)
        if plan is not None:
            folder.write("plan.json", plan.to_json())

    def share_files(self, work: Callable[[], Any]) -> None:
        """Let the first rank write, and all ranks know how that went."""
        self.team.share(self.net, work)

    def go_on(self, folder: RunFolder, last: Path) -> None:
        """Take everything from a checkpoint."""
        plain = read_run_state(last)
        self.taken = plain["step"]
        self.recent, self.whole = Sums(*plain["recent"]), Sums(*plain["whole"])
        if not load_run_state(last, plain, self.net, self.update.optimizer, self.update.scaler, self.team):
            self.seed_random("step", self.taken)  # other ranks than before: new random numbers
        if self.monitor is not None:
            self.monitor.load_state_dict(plain.get("monitor", {}))
            self.told = len(self.monitor.events)
        self.share_files(lambda: folder.cut(plain["bytes"]))
        self.history.rows = [from_line(line) for line in folder.lines(METRICS)]
        self.history.score = None if plain["score"] is None else Score(**plain["score"])

    def end(self) -> None:
        """Write the weights and the curves."""
        folder = self.folder
        if folder is not None:
            with self.team.waiting("the weights", works=True):
                save_state(self.net, folder.path / "weights.safetensors")
            self.share_files(lambda: _draw(self.history, folder))

    def forget(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Leave no folder of a run that failed before its first step was taken."""
        if error is not None and self.folder is not None and self.taken == 0 and self.team.is_first:
            self.folder.undo()

    def save(self) -> None:
        """Write a checkpoint."""
        folder = self.folder
        if folder is None:
            return
        facts = {
            "step": self.taken,
            "epoch": self.taken // self.data.steps,
            "batch": self.taken % self.data.steps,
            "recent": list(dataclasses.astuple(self.recent)),
            "whole": list(dataclasses.astuple(self.whole)),
            "score": None if self.history.score is None else dataclasses.asdict(self.history.score),
            "bytes": self.team.share(self.net, folder.sizes),
            **({} if self.monitor is None else {"monitor": self.monitor.state_dict()}),
        }
        with self.team.waiting("the parts of a checkpoint"):
            state = gather_run_state(self.net, self.update.optimizer, self.update.scaler, self.team, facts)
        self.share_files(lambda: folder.save(self.taken, lambda part: write_run_state(part, state), keep=self.keep))

    # Steps -----------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """All steps that are left."""
        team, each = self.team, self.data.steps
        for epoch in range(self.taken // each, self.recipe.epochs):
            batches = self.data.epoch(epoch, start=self.taken % each, rank=team.replica, world=team.replicas)
            for x, labels in batches:
                self.one(x, labels, epoch)

    def one(self, x: torch.Tensor, labels: torch.Tensor, epoch: int) -> None:
        """A step, and what follows it: rows, a score, a checkpoint, a report."""
        begun = time.perf_counter()
        lr = self.recipe.lr_at(self.taken, steps=self.steps)
        got = self.update(x.to(self.update.device), labels, lr)
        if got.fault:
            self.stop(got, x.to(self.update.device))
        self.taken += 1
        self.clock.took(time.perf_counter() - begun, int(got.sums.count))
        self.recent.add(got.sums)
        self.whole.add(got.sums)
        loss, error = self.whole.means
        events = () if self.monitor is None else tuple(self.monitor.events[self.told :])
        self.told += len(events)
        rows: list[Row] = list(events)
        if self.taken % self.log_every == 0:
            recent, wrong = self.recent.means
            norm = got.gradient if math.isfinite(got.gradient) else None
            rows.append(StepRow(step=self.taken, epoch=epoch + 1, lr=lr, loss=recent, error=wrong, gradient=norm))
            self.recent = Sums()
        score = None
        if self.taken % self.data.steps == 0:
            score = self.history.score = evaluate(self.net, self.data)
            rows.append(
                EpochRow(
                    step=self.taken,
                    epoch=epoch + 1,
                    lr=lr,
                    loss=loss,
                    error=error,
                    test_loss=score.loss,
                    test_error=score.error,
                )
            )
            self.whole = Sums()
        self.keep_rows(rows)
        if score is not None or (self.checkpoint_every is not None and self.taken % self.checkpoint_every == 0):
            self.save()
        if self.report is not None and self.team.is_first:
            self.report(
                Progress(
                    step=self.taken,
                    steps=self.steps,
                    epoch=epoch + 1,
                    epochs=self.recipe.epochs,
                    loss=loss,
                    error=error,
                    lr=lr,
                    rate=self.clock.rate,
                    left=self.clock.left(self.steps - self.taken),
                    score=score,
                    events=events,
                )
            )

    def keep_rows(self, rows: list[Row]) -> None:
        """Add rows to the history and to the files."""
        self.history.rows += rows
        if rows and self.folder is not None and self.team.is_first:
            self.folder.append(METRICS, [to_line(row) for row in rows])
            times = {"step": self.taken, "seconds": round(self.clock.seconds, 3), "rate": round(self.clock.rate, 2)}
            self.folder.append(TIMES, [json.dumps(times)])
            if self.board is not None:
                for row in rows:
                    self.board.add(row, self.clock.rate)

    def stop(self, got: Taken, x: torch.Tensor) -> NoReturn:
        """Find where it began, and raise."""
        if got.fault == "loss":
            what, value, way = "loss", got.sums.loss / got.sums.count, "the forward pass"
            with self.update.autocast():
                fault = forward_fault(self.net, x, self.team)
        else:
            what, value, way = "gradients' norm", got.gradient, "the gradients"
            fault = backward_fault(self.net, self.team)
        last = None if self.folder is None else self.folder.last_checkpoint()
        kept = "there is no checkpoint" if last is None else f"the last checkpoint is {str(last)!r}"
        raise TrainingError(
            f"the {what} of step {self.taken + 1} (epoch {self.taken // self.data.steps + 1}, batch "
            f"{self.taken % self.data.steps + 1}) is {value}: {way} became non-finite first, beginning in {fault}; "
            f"{kept}; lower the learning rate, let it rise at first (warmup), or clip the gradients (clip)",
            self.taken + 1,
            fault.where,
        )


def _plan(net: nn.Module) -> Plan | None:
    """The plan of a parareal network, or of what runs one."""
    plan = getattr(net, "plan", None) or getattr(getattr(net, "net", None), "plan", None)
    return plan if isinstance(plan, Plan) else None


def _draw(history: History, folder: RunFolder) -> None:
    from pararealize.train.run.curves import draw_curves

    draw_curves(history, folder.path / "curves.svg", title=folder.path.name)
