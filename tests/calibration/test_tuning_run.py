"""Runs: the loss falls, the best weights are kept, a run that breaks off leaves them, norms as asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pararealize.calibration.graph_run import GraphRun
from pararealize.calibration.losses import OutputLoss
from pararealize.calibration.output_kind import ClassScores, OutputKind
from pararealize.calibration.teacher import Teacher
from pararealize.calibration.trained_parameters import TrainedParameters
from pararealize.calibration.tuning_data import TuningData
from pararealize.calibration.tuning_run import TuningJob, TuningRun, trained_norms
from pararealize.errors import TrainingError
from pararealize.train.recipe import Recipe
from tests.tuning_networks import padded_batches, token_net

MSE = OutputLoss(name="mse", why="", kind=OutputKind(scores=(), why=""))


def run_of(lr: float, *, train: Any = "all", steps: int = 12, match: float = 0.0, said: Any = None) -> TuningRun:
    _, net = token_net()
    job = TuningJob(
        net=net, teacher=Teacher(net, None, renewed=(), mask="auto"), loss=MSE, match=match, mask="auto", steps=steps,
        data=TuningData(padded_batches(), None, keep=0, seed=0), every=4,
        recipe=Recipe(optimizer="adamw", lr=lr, schedule="constant", weight_decay=0.0, clip=1.0),
        say=(said if said is not None else []).append,
    )  # fmt: skip
    run = TuningRun(job, TrainedParameters(net, train), [], by_batch=False)
    run.look()
    return run


@pytest.mark.parametrize("train", ["all", "added", "lora:2"])
def test_the_loss_falls_and_the_best_is_kept(train: str) -> None:
    said: list[str] = []
    run = run_of(5e-3, train=train, said=said)
    run.advance(12)
    assert [row.step for row in run.rows] == [0, 4, 8, 12]
    assert run.best[0] == min(row.held_out for row in run.rows) < run.rows[0].held_out
    assert said[-1].startswith("fine-tuning: step 12 of 12, loss ")
    run.load_best()
    assert run.look() == run.best[0]
    assert all(parameter.grad is None for parameter in run.job.net.parameters())


def batch_of(lengths: list[int], scale: int) -> dict[str, torch.Tensor]:
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    return {"ids": mask * (torch.arange(5 * len(lengths)).view(-1, 5) % scale + 1), "attention_mask": mask}


@pytest.mark.parametrize("name", ["mse", "kl", "own"])
def test_what_is_held_out_is_measured_as_one_batch(name: str) -> None:
    """It was a mean over samples, and one of no words counted as much as any other."""
    batches = [batch_of([1, 1, 2], 7), batch_of([5], 19), batch_of([3, 4], 11)]
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    padding = {key: torch.zeros_like(value) for key, value in batches[0].items()}
    scores = (ClassScores(path=(0,), form="logits", axis=2),)

    def own(student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        mask = batch["attention_mask"] != 0
        return functional.l1_loss(student[0][mask], teacher[0][mask])

    loss = OutputLoss(
        name=name, why="", kind=OutputKind(scores=scores, why=""), function=own if name == "own" else None
    )
    losses = []
    for tests in ([whole], batches, [padding, *batches, padding]):
        _, net = token_net(end="tuple")
        run = run_of(1e-3)
        data = TuningData(padded_batches(1), tests, keep=0, seed=0)
        teacher = Teacher(net, None, renewed=(), mask="auto")
        job = dataclasses.replace(run.job, net=net, teacher=teacher, loss=loss, data=data)
        losses.append(TuningRun(job, TrainedParameters(net, "all"), [], by_batch=False).look())
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_matching_the_ends_of_windows_is_part_of_the_loss() -> None:
    run = run_of(1e-3, match=2.0)
    job, batch = run.job, padded_batches(1)[0]
    values, teacher = GraphRun(job.net)(batch), job.teacher(batch)
    mask = batch["attention_mask"] != 0
    apart = [
        ((w - u)[mask].square().sum() / u[mask].square().sum()).item()
        for w, u in zip(values.ends, teacher.ends, strict=True)
    ]
    wanted = job.output_loss(batch, values, teacher).item() + 2 * sum(apart) / 2
    assert job.training_loss(batch, values, teacher).item() == pytest.approx(wanted, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    run = run_of(1e30)
    with pytest.raises(
        TrainingError, match=r"in step 2 of 12 of fine-tuning; .*: pass a smaller lr than 1e\+30"
    ) as raised:
        run.advance(12)
    assert raised.value.step == 2
    run.load_best()
    assert run.look() == run.rows[0].held_out


def test_norms_whose_statistics_may_follow() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    norms = [net[1], net[2]]
    assert trained_norms(net, TrainedParameters(net, "all")) == norms
    assert trained_norms(net, TrainedParameters(net, ["1"])) == norms[:1]
    assert trained_norms(net, TrainedParameters(net, ["0"])) == []
    assert torch.equal(net[1].running_mean, torch.zeros(3))


def test_the_teacher_runs_in_the_precision_of_the_recipe() -> None:
    """In single precision it took longer than the student, forward and backward, in bfloat16."""
    run = run_of(1e-3)
    cast: list[bool] = []

    def teach(batch: Any) -> Any:
        cast.append(torch.is_autocast_enabled("cpu"))
        return run.job.teacher(batch)

    recipe = dataclasses.replace(run.job.recipe, amp="bfloat16")
    steps = TuningRun(dataclasses.replace(run.job, recipe=recipe, teacher=teach), run.trained, [], by_batch=False)
    steps.look()
    assert not any(cast)
    cast.clear()
    steps.advance(1)
    assert cast[0]
