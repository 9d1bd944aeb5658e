"""Values that adapters and coarse blocks give are laid out in memory as the network's own, which it may view."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pararealize.compiler import pararealize
from pararealize.multigrid.module import layer_parallel
from pararealize.tracing.front_end import capture
from pararealize.tracing.layouts import lay_out, order_of


class Block(nn.Module):
    """Reads (batch, a, b, c) by a view that a permuted order in memory alone allows, and gives that order again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, a, b, c = x.shape
        rows = x.transpose(1, 2).view(batch, b, a * c)  # the order in memory is batch, b, a, c
        return x + torch.tanh(self.linear(rows)).view(batch, b, a, c).transpose(1, 2)


class Permuted(nn.Module):
    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block(12) for _ in range(depth))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).view(x.shape[0], 5, 3, 4).transpose(1, 2)  # from (batch, 5, 12) by threes
        for block in self.blocks:
            x = block(x)
        return self.head(x.transpose(1, 2).flatten(2).view(-1, 12)).view(x.shape[0], -1)


def example(batch: int = 2) -> Tensor:
    return torch.randn(batch, 15, 4)


@pytest.mark.parametrize("coarse", ["linear", "block", "exact"])
@pytest.mark.parametrize("source", ["input", "stem"])
def test_blocks_that_view_their_input_are_cut_between(coarse: str, source: str) -> None:
    model, x = Permuted().eval(), example()
    net = pararealize(model, n=4, example_inputs=x, coarse=coarse, source=source).eval()
    net(example(3)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert torch.equal(net.iterate(x, 3), model(x))


def test_layers_of_multigrid_view_their_input() -> None:
    model, x = Permuted(8).eval(), example()
    net = layer_parallel(model, example_inputs=x, levels=2, coarsening=2, forward_iterations=8)
    torch.testing.assert_close(net.eval()(x), model(x), rtol=1e-4, atol=1e-5)


class Shifted(nn.Module):
    """Blocks of channels first in memory order of channels last, which make a constant and read a context."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.layers = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(4))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = self.first(x).transpose(1, 2)
        for layer in self.layers:
            ones = torch.ones(6, 1, device=x.device)
            x = (layer(x) * gate + ones).transpose(1, 2).contiguous().transpose(1, 2)
        return x


def test_pieces_that_ask_for_their_device() -> None:
    model, inputs = Shifted().eval(), (torch.randn(2, 5, 6), torch.rand(2, 1, 1))
    net = pararealize(model, n=3, example_inputs=inputs).eval()
    assert torch.equal(net.iterate(inputs, 2), model(*inputs))


@settings(deadline=None, max_examples=60)
@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4), st.permutations(range(4)))
def test_a_piece_sees_the_recorded_order(order: list[int], sizes: list[int], other: list[int]) -> None:
    """Whatever the order of what comes, and the same memory where it has the recorded one."""
    value = torch.empty_permuted(sizes, order)
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = value
    graph.output(graph.call_function(torch.Tensor.detach, (x,)))
    lay_out(graph)
    module = fx.GraphModule(nn.Module(), graph)
    y = torch.empty_permuted(sizes, other).normal_()
    z = module(y)
    assert torch.equal(y, z)
    recorded = order_of(value)
    assert recorded is not None
    if recorded != tuple(range(4)):
        assert z.permute(recorded).is_contiguous()
        assert module(value).data_ptr() == value.data_ptr()
    else:
        assert z.data_ptr() == y.data_ptr()


def test_memory_with_gaps_has_no_order() -> None:
    assert order_of(torch.empty(4, 6)[:, :3]) is None
    assert order_of(torch.empty(4, 1).expand(4, 3)) is None
    assert order_of(torch.empty(2, 3).to_sparse()) is None
    assert order_of(None) is None
    assert order_of(torch.empty(2, 3, 4).transpose(1, 2)) == (0, 2, 1)


def test_networks_of_the_usual_layout_are_not_changed() -> None:
    net = pararealize(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), n=2, example_inputs=torch.randn(2, 4))
    assert not any(node.target == "contiguous" for graph in net.part_graphs.values() for node in graph.nodes)
    assert capture(Permuted(), example()).graph is not None
