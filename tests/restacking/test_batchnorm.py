"""Batch norms' statistics measured anew."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize import recalibrate_batchnorm, restack
from pararealize.errors import ExampleError
from tests.models import OverwritesInput


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm1d(4))
    net(torch.randn(8, 3) + 5)
    return net


def test_statistics_are_the_averages_over_the_batches() -> None:
    net, batches = network(), [torch.randn(8, 3), torch.randn(8, 3) + 1]
    weights = [p.clone() for p in net.parameters()]
    assert recalibrate_batchnorm(net, batches) == 2
    inputs = [net[0](batch) for batch in batches]
    torch.testing.assert_close(net[1].running_mean, torch.stack([h.mean(0) for h in inputs]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([h.var(0) for h in inputs]).mean(0))
    seen = [nn.functional.batch_norm(h, None, None, net[1].weight, net[1].bias, True) for h in inputs]  # no dropout
    torch.testing.assert_close(net[3].running_var, torch.stack([h.var(0) for h in seen]).mean(0))
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))


def test_modes_and_momenta_are_put_back() -> None:
    net = network()
    net[2].eval()
    recalibrate_batchnorm(net, [torch.randn(8, 3)])
    assert [module.training for module in net.modules()] == [True, True, True, False, True]
    assert (net[1].momentum, net[3].momentum) == (0.3, 0.1)
    with pytest.raises(ExampleError, match=r"does not take batch 1.*mat1 and mat2"):
        recalibrate_batchnorm(net, [torch.randn(8, 5)])
    assert [module.training for module in net.modules()] == [True, True, True, False, True]


@pytest.mark.parametrize("wrap", [lambda x: (x, 0), lambda x: [x, 0], lambda x: {"input": x}, lambda x: x])
def test_kinds_of_batches(wrap) -> None:
    x, net = torch.randn(8, 3), network()
    other = copy.deepcopy(net)
    recalibrate_batchnorm(net, [wrap(x)])
    recalibrate_batchnorm(other, [x])
    assert torch.equal(net[1].running_mean, other[1].running_mean)


def test_batches_stay_where_a_network_writes_into_its_input() -> None:
    x, net = torch.randn(8, 3), OverwritesInput(nn.BatchNorm1d(3))
    batch = x.clone()
    recalibrate_batchnorm(net, [batch])
    assert torch.equal(batch, x)
    torch.testing.assert_close(net[0].running_mean, x.mean(0) / 2)


def test_an_empty_loader_changes_nothing() -> None:
    net = network()
    before = net[1].running_mean.clone()
    with pytest.raises(ExampleError, match="gives no batch; pass some tens"):
        recalibrate_batchnorm(net, [])
    assert torch.equal(net[1].running_mean, before)


def test_a_batch_with_one_value_a_channel_is_left_out() -> None:
    """The last one of a loader may hold a single sample, which has no variance."""
    net, batches = network(), [torch.randn(8, 3), torch.randn(8, 3) + 1]
    other = copy.deepcopy(net)
    recalibrate_batchnorm(net, [batches[0], torch.randn(1, 3), batches[1], torch.randn(1, 3)])
    recalibrate_batchnorm(other, batches)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("batch, text", [((1, 3), "one value a channel at a batch norm"), ((8, 5), "mat1 and mat2")])
def test_an_error_leaves_statistics_as_they_were(batch: tuple[int, int], text: str) -> None:
    net = network()
    before = copy.deepcopy(net)
    with pytest.raises(ExampleError, match=text):
        recalibrate_batchnorm(net, [*([torch.randn(8, 3)] if batch[0] > 1 else []), torch.randn(batch)])
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before.buffers(), strict=True))


def test_without_batch_norms_nothing_runs() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    assert recalibrate_batchnorm(Failing(), [torch.zeros(1)]) == 0


class OwnForward(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        arguments = self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        return F.batch_norm(x, *arguments)


class Functional(nn.Module):
    """No class of torch.nn's: statistics are buffers, which a function moves."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((features,), torch.inf))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("table", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.table * F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class Frozen(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.table, self.running_var)


class NormedBlocks(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norms, self.layers = nn.ModuleList(norm(3) for _ in range(4)), nn.ModuleList()
        for n in range(4):
            torch.manual_seed(n)
            self.layers.append(nn.Linear(3, 3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + self.drop(torch.tanh(layer(norm(x))))
        return x


@pytest.mark.parametrize("norm", [OwnForward, Functional])
def test_norms_with_a_forward_of_their_own_are_measured_also_where_it_is_recorded(norm) -> None:
    """A recorded forward has the momentum that the norm had: what is measured must not hang on it."""
    x = torch.randn(8, 3) * 3 + 5
    batches = [x, torch.randn(1, 3), x - 1]
    for wrap in (lambda net: net, lambda net: restack(net, "midpoint", example_inputs=x)):
        net, expected = wrap(NormedBlocks(norm)), wrap(NormedBlocks(nn.BatchNorm1d))
        assert recalibrate_batchnorm(net, batches) == recalibrate_batchnorm(expected, batches) == 4
        for n in range(4):
            for name in ("running_mean", "running_var"):
                ours, theirs = (each.get_submodule(f"norms.{n}").get_buffer(name) for each in (net, expected))
                torch.testing.assert_close(ours, theirs)
        assert all(module.training for module in net.modules())


def test_statistics_that_training_leaves_alone_stay() -> None:
    net = NormedBlocks(Frozen)
    before = copy.deepcopy(net)
    assert recalibrate_batchnorm(net, [torch.randn(8, 3)]) == 0
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before.buffers(), strict=True))


def test_a_network_without_parameters() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, affine=False))
    x = torch.randn(8, 3)
    assert recalibrate_batchnorm(net, [x]) == 1
    torch.testing.assert_close(net[0].running_mean, x.mean(0))
