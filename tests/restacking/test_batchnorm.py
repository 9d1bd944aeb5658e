"""Batch norms' statistics measured anew."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pararealize import recalibrate_batchnorm
from pararealize.errors import ExampleError


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
