"""One step of the optimiser, against the same step written out."""

import copy
import math

import pytest
import torch
from torch import nn

from pararealize import Recipe
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import DataError, ExampleError, ModelError
from pararealize.train.steps import one_process_step
from pararealize.train.update import Sums, Update
from tests.training import network, samples


def batch():
    return next(samples().epoch(0))


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_step_is_that_written_out(clip):
    net = network(dropout=0.0)
    twin = copy.deepcopy(net)
    recipe = Recipe(lr=0.2, clip=clip, label_smoothing=0.1)
    x, labels = batch()
    got = Update(net, recipe, TrainingProcesses())(x, labels, 0.3)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
    output = twin(x)
    loss = nn.functional.cross_entropy(output, labels, label_smoothing=0.1)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), math.inf if clip is None else clip)
    optimizer.step()
    # the norm has more digits than torch's own, which is rounded for each tensor
    assert got.gradient == pytest.approx(norm.item(), rel=1e-6)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert got.sums.count == 8
    assert got.sums.loss == loss.double().item() * 8
    assert got.sums.right == (output.argmax(1) == labels).sum().item()
    assert got.fault == ""
    assert clip is None or norm > clip


def test_a_step_that_computes_its_loss_once_more_counts_the_first():
    net = network(dropout=0.0)

    def step(x, /, *, target, loss_fn, scaler=None):
        loss = loss_fn(nn.functional.one_hot(target, 3).float().requires_grad_(), target)
        loss.backward()
        loss_fn(-nn.functional.one_hot(target, 3).float(), target)
        return loss.detach()

    x, labels = batch()
    net(x).sum().backward()
    assert Update(net, Recipe(), TrainingProcesses(), step)(x, labels, 0.1).sums.right == 8


def test_autocast_runs_forward_in_its_type():
    net = network()
    seen = []
    net.segments["g2"].register_forward_hook(lambda _, __, y: seen.append(y.dtype))
    x, labels = batch()
    Update(net, Recipe(amp="bfloat16"), TrainingProcesses())(x, labels, 0.1)
    Update(net, Recipe(), TrainingProcesses())(x, labels, 0.1)
    assert seen == [torch.bfloat16, torch.float32]
    assert all(p.dtype is torch.float32 for p in net.parameters())


def test_float16_passes_over_a_step_that_overflows():
    net = network(dropout=0.0)
    before = [p.clone() for p in net.parameters()]
    update = Update(net, Recipe(amp="float16"), TrainingProcesses())
    assert update.scaler is not None
    update.scaler.load_state_dict({**update.scaler.state_dict(), "scale": 2.0**60})
    x, labels = batch()
    got = update(x, labels, 0.1)
    assert not math.isfinite(got.gradient)
    assert got.fault == ""
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert update.scaler.get_scale() == 2.0**59
    update.scaler.load_state_dict({**update.scaler.state_dict(), "scale": 128.0})
    assert math.isfinite(update(x, labels, 0.1).gradient)
    assert not all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("fault", ["loss", "gradients"])
def test_weights_stay_where_something_is_not_finite(fault):
    net = network(dropout=0.0)
    before = [p.clone() for p in net.parameters()]
    update = Update(net, Recipe(), TrainingProcesses())
    x, labels = batch()
    if fault == "loss":
        x[0, 0] = math.inf
    else:
        next(net.parameters()).register_hook(lambda gradient: gradient * math.nan)
    assert update(x, labels, 0.1).fault == fault
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_a_network_may_have_its_own_step():
    net = network(dropout=0.0)
    calls = []
    plain = one_process_step(net)

    def step(x, /, **arguments):
        calls.append(len(x))
        return plain(x, **arguments)

    x, labels = batch()
    Update(net, Recipe(), TrainingProcesses(), step)(x, labels, 0.1)
    assert calls == [8]


def test_no_logits_are_refused():
    x, labels = batch()
    with pytest.raises(ExampleError, match="gives a tensor of shape"):
        Update(nn.Sequential(nn.Linear(8, 8), nn.Flatten(0)), Recipe(), TrainingProcesses())(x, labels, 0.1)


@pytest.mark.parametrize("net", [nn.Flatten(), nn.Linear(8, 3).requires_grad_(False)])
def test_nothing_to_train_is_refused(net):
    with pytest.raises(ModelError, match=r"nothing of this (Flatten|Linear) can be trained"):
        Update(net, Recipe(), TrainingProcesses())


def test_sums():
    sums = Sums(loss=3.0, right=1, count=2)
    sums.add(Sums(loss=1.0, right=1, count=2))
    assert sums.means == (1.0, 0.5)


def test_a_batch_of_one_sample_is_refused_where_batch_norms_cannot_take_it():
    x, labels = batch()
    with pytest.raises(DataError, match="a batch of 1 sample gives a batch norm one value of each channel"):
        Update(network(), Recipe(), TrainingProcesses())(x[:1], labels[:1], 0.1)
