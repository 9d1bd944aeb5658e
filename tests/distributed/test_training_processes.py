"""Training over ranks: what one process computes, checkpoints of any number of ranks, faults that end all of them."""

import math
import os
import signal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import Recipe, evaluate, fit
from pararealize.distributed.checkpoint.state import gather_state_dict
from pararealize.errors import PararealizeError, TrainingError
from pararealize.train.run.history import from_line
from tests.ranks import RanksFailed, on_ranks
from tests.training import network, same, samples

RECIPE = Recipe(epochs=3, lr=0.05, clip=1.0)


def stage_of(copies=1, **options):
    """This rank's part of the test network."""
    mesh = init_device_mesh("cpu", (copies, dist.get_world_size() // copies), mesh_dim_names=("dp", "parareal"))
    return network(dropout=0.0, **options).distribute(mesh, timeout=30)


def trained(copies, recipe, options):
    stage = stage_of(copies)
    history = fit(stage, samples(), recipe, **options)
    return arrays(gather_state_dict(stage)), history, evaluate(stage, samples())


def arrays(state):
    """Tensors go through pipes as memory of a process that may be gone."""
    return {name: value.numpy() for name, value in state.items()}


def tensors(state):
    return {name: torch.from_numpy(value) for name, value in state.items()}


def close(a, b):
    """Two states, to rounding."""
    return all(torch.allclose(a[key].double(), b[key].double(), atol=1e-4) for key in b)


@pytest.mark.parametrize("amp", [None, "float16"])
def test_two_ranks_train_as_one_process_does(amp):
    recipe = Recipe(epochs=2, lr=0.05, clip=1.0, amp=amp, initialise="he")
    net = network(dropout=0.0)
    expected = fit(net, samples(), recipe)
    found = on_ranks(2, trained, 1, recipe, {})
    state, history, score = tensors(found[0][0]), *found[0][1:]
    assert state.keys() == net.state_dict().keys()
    for _, theirs, their_score in found:
        assert [row.error for row in theirs.epochs] == [row.error for row in expected.epochs]
        assert [row.loss for row in theirs.epochs] == pytest.approx([row.loss for row in expected.epochs], rel=2e-3)
        assert (theirs.rows, their_score) == (history.rows, score)
    assert score == history.score
    if amp is None:
        assert close(state, net.state_dict())


def test_copies_share_every_batch():
    """Gradients averaged over halves of a batch are the whole one's, where no norm couples its samples."""
    recipe = Recipe(epochs=2, lr=0.05)
    found = on_ranks(2, copies, recipe)
    net, other = network(dropout=0.0, norm=nn.Identity), network(dropout=0.0, norm=nn.Identity)
    expected, others = fit(net, samples(), recipe), fit(other, samples(batch_size=7), recipe)
    for uncoupled, rows, coupled, uneven, its_losses in found:
        assert close(tensors(uneven), other.state_dict())
        assert its_losses == pytest.approx([row.loss for row in others.rows], rel=1e-4)
        assert close(tensors(uncoupled), net.state_dict())
        assert [row.error for row in rows] == [row.error for row in expected.rows]
        assert same(tensors(coupled), tensors(found[0][2]))  # the first one's statistics, too


def copies(recipe):
    seen = sum(len(labels) for _, labels in samples().epoch(0, rank=dist.get_rank(), world=2))
    assert seen == 20
    stage, normed = stage_of(2, norm=nn.Identity), stage_of(2)
    history = fit(stage, samples(), recipe)
    fit(normed, samples(test=5), recipe)  # one batch, for one of the two copies
    uneven = stage_of(2, norm=nn.Identity)
    losses = [row.loss for row in fit(uneven, samples(batch_size=7), recipe).rows]  # shares of 4 and 3
    return arrays(stage.state_dict()), history.rows, arrays(normed.state_dict()), arrays(uneven.state_dict()), losses


def partly_frozen(recipe):
    """All that the first of two ranks holds stays as it is; the one-process network beside."""
    net = network(dropout=0.0)
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("dp", "parareal"))
    stage = net.distribute(mesh, timeout=30)
    if stage.rank == 0:
        stage.requires_grad_(False)
    names = [None, None]
    dist.all_gather_object(names, [name for name, _ in stage.named_parameters()])
    for name in names[0]:
        net.get_parameter(name).requires_grad_(False)
    history, expected = fit(stage, samples(), recipe), fit(net, samples(), recipe)
    whole = net.state_dict()
    return (
        history.score.error,
        expected.score.error,
        close(stage.state_dict(), {k: whole[k] for k in stage.state_dict()}),
    )


@pytest.mark.parametrize("amp", [None, "float16"])
def test_a_rank_may_have_nothing_to_train(amp):
    for error, expected, alike in on_ranks(2, partly_frozen, Recipe(epochs=1, lr=0.05, clip=1.0, amp=amp)):
        assert error == expected
        assert alike or amp


class Stopped(Exception):
    pass


def stopped(folder, step):
    """A run that ends on all ranks after a step."""
    first = dist.get_rank() == 0

    def report(now):
        if now.step == step:
            raise Stopped

    try:
        fit(stage_of(), samples(), RECIPE, folder=folder, checkpoint_every=2, log_every=2, report=report)
    except Stopped:
        return "stopped" if first else "a wrong rank"
    except PararealizeError as error:
        return str(error)
    return "went on"


def test_ranks_go_on_to_the_bit_and_one_process_too(tmp_path):
    whole = on_ranks(2, trained, 1, RECIPE, {"folder": tmp_path / "whole", "checkpoint_every": 2, "log_every": 2})
    for name in ("two", "one"):
        ends = on_ranks(2, stopped, str(tmp_path / name), 7)
        assert ends[0] == "stopped"
        assert "rank 0" in ends[1]
    options = {"folder": tmp_path / "two", "resume": True, "checkpoint_every": 2, "log_every": 2}
    again = on_ranks(2, trained, 1, RECIPE, options)
    assert same(tensors(again[0][0]), tensors(whole[0][0]))
    assert again[1][1].rows == whole[1][1].rows
    for name in ("metrics.jsonl", "weights.safetensors", "run.json", "plan.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    net = network(dropout=0.0)
    fit(net, samples(), RECIPE, folder=tmp_path / "one", resume=True, log_every=2)
    assert close(tensors(whole[0][0]), net.state_dict())
    assert (tmp_path / "one" / "run.json").read_bytes() == (tmp_path / "whole" / "run.json").read_bytes()
    rows = [from_line(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert [row.error for row in rows] == [row.error for row in whole[0][1].rows]
    assert load_file(tmp_path / "one" / "weights.safetensors").keys() == whole[0][0].keys()


def faulty(kind, folder):
    """A run in which something happens to rank 1, or to a file."""
    me = dist.get_rank()
    stage = stage_of()
    calls = []

    def hook(_, __, y):
        calls.append(y)
        if len(calls) < 7 or not stage.training:
            return y
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "raise":
            raise ValueError("a bad batch")
        return y * math.inf

    if me == 1 and kind in ("kill", "raise", "nan"):
        stage.rank_setup.modules.parts["g3"].register_forward_hook(hook)
    if me == 1 and kind == "gradients":
        next(stage.rank_setup.modules.parts["g3"].parameters()).register_hook(lambda gradient: gradient * math.nan)
    try:
        fit(stage, samples(test=6), RECIPE, folder=folder)
    except (PararealizeError, ValueError) as error:
        return type(error).__name__, str(error), isinstance(error, TrainingError) and error.where
    return "went on", "", None


@pytest.mark.parametrize("kind, told", [
    ("nan", "the loss of step 6 (epoch 2, batch 1) is nan: the forward pass became non-finite first"),
    ("gradients", "the gradients' norm of step 1 (epoch 1, batch 1) is nan: the gradients became non-finite first"),
])  # fmt: skip
def test_what_is_not_finite_is_found_on_its_rank(tmp_path, kind, told):
    ends = on_ranks(2, faulty, kind, str(tmp_path / "run"))
    for name, text, where in ends:
        assert name == "TrainingError", text
        assert f"{told}, beginning in segment 3" in text
        assert where.startswith("segment 3")


def test_a_rank_that_raises_ends_all(tmp_path):
    first, second = on_ranks(2, faulty, "raise", str(tmp_path / "run"))
    assert second[:2] == ("ValueError", "a bad batch")
    assert first[0] == "RankError"
    assert "rank 1 (segment" in first[1]
    assert "ValueError: a bad batch" in first[1]


def test_a_rank_that_is_killed_ends_all(tmp_path):
    with pytest.raises(RanksFailed, match="rank 1: died with exit code -9") as caught:
        on_ranks(2, faulty, "kill", str(tmp_path / "run"))
    assert "in time" not in str(caught.value)  # rank 0 has ended by itself, with an error that it returned
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]


def refused(folder, options):
    try:
        fit(stage_of(), samples(), RECIPE, folder=folder, **options)
    except PararealizeError as error:
        return type(error).__name__, str(error)
    return "", "went on"


@pytest.mark.parametrize("options, kind, told", [
    ({}, "OutputError", "is there already"),
    ({"resume": True}, "CheckpointError", "weights.safetensors is not what was written"),
])  # fmt: skip
def test_a_folder_that_is_taken_or_damaged_is_refused_on_all_ranks(tmp_path, options, kind, told):
    fit(network(dropout=0.0), samples(), RECIPE, folder=tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000015" / "weights.safetensors").write_bytes(b"")
    ends = on_ranks(2, refused, str(tmp_path / "run"), options)
    assert ends[0][0] == kind
    assert all(told in text for _, text in ends)
