"""Segments that keep few activations: the same values and gradients, less kept, statistics moved once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pararealize import pararealize
from pararealize.distributed.activation_checkpoint import checkpointed_segment
from tests.models import LanguageModel, SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)


def kept(function, x):
    """The output, and the bytes that autograd keeps for its backward beside parameters and the input."""
    sizes = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x)
    return y, sum(sizes.values())


@pytest.mark.parametrize(
    "make, inputs", [(lambda: SmallResNet(8, 4), IMAGES), (LanguageModel, torch.ones(2, 5).long())]
)
def test_it_gives_the_same_and_keeps_less(make, inputs) -> None:
    net = pararealize(make(), n=1, example_inputs=inputs)
    twin = copy.deepcopy(net)
    x = torch.randn_like(net.stem(inputs), requires_grad=True)
    context = () if net.context is None else [value.detach() for value in net.context(inputs)]
    y, plain = kept(lambda x: net.segments["g1"](x, *context), x)
    y.square().sum().backward()
    expected, x.grad = x.grad, None
    checkpointed = checkpointed_segment(twin, twin.segments["g1"])
    z, few = kept(lambda x: checkpointed(x, *context), x)
    z.square().sum().backward()
    assert torch.equal(y, z)
    assert torch.equal(x.grad, expected)
    assert few < plain / 2
    for name, parameter in net.named_parameters():
        ours = dict(twin.named_parameters())[name].grad
        assert (parameter.grad is None) == (ours is None)
        assert ours is None or torch.allclose(ours, parameter.grad)
    for name, buffer in net.named_buffers():
        assert torch.equal(dict(twin.named_buffers())[name], buffer), name


def test_a_segment_without_such_points_is_one_run() -> None:
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x + torch.tanh(self.linear(x)) * x

    net = pararealize(nn.Sequential(Joined(), Joined()), n=2, example_inputs=torch.randn(2, 4))
    x = torch.randn(3, 4, requires_grad=True)
    assert torch.equal(checkpointed_segment(net, net.segments["g2"])(x), net.segments["g2"](x))
