"""Sizes are read from the tensors of their readers, else from inputs; pieces compute them from their own activation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize import pararealize
from pararealize.tracing.front_end import capture
from pararealize.tracing.size_nodes import is_told, size_of, tensors_of_size


class Residual(nn.Module):
    """A stem, residual convolutions and a head, with sizes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for layer in self.layers:
            y = y + torch.tanh(layer(y))
        height, width = y.shape[2:]
        return self.head(y.sum((2, 3)) / (height * width))


class Upsampled(Residual):
    """The input's size, at the end of what was made smaller."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.stem(x), 3, 2, 1)
        for layer in self.layers:
            y = y + torch.tanh(layer(y))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear")


class InputSized(Residual):
    """Sizes of the input in every block, which no block's activation tells."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.stem(x), 2)
        for layer in self.layers:
            y = y + torch.tanh(layer(y)) / x.shape[2] + math.prod(x.shape[2:])
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("kind", [Residual, Upsampled, InputSized])
def test_networks_are_right_at_other_sizes(kind: type[Residual]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    nets = [pararealize(model, n=n, coarse="linear", example_inputs=torch.randn(2, 3, 16, 16)).eval() for n in (1, 3)]
    with torch.no_grad():
        for shape in ((2, 3, 16, 16), (1, 3, 32, 20), (3, 3, 8, 12)):
            x = torch.randn(shape)
            for n, net in zip((1, 3), nets, strict=True):
                torch.testing.assert_close(net.iterate(x, n - 1), model(x))


def test_a_size_is_read_from_what_its_reader_reads() -> None:
    captured = capture(Residual(), torch.randn(2, 3, 16, 16))
    reads = [node for node in captured.graph.nodes if node.target is size_of]
    assert {str(node.args[0]) for node in reads} == {"sum_1"} or len({str(node.args[0]) for node in reads}) == 1
    product = next(node for node in captured.graph.nodes if node.meta.get("size") is not None and node not in reads)
    assert tensors_of_size(product) == [reads[0].args[0]]
    assert is_told(product.meta["size"], [next(iter(captured.graph.nodes))])
    assert not is_told(product.meta["size"], [captured.graph.output_node()])
