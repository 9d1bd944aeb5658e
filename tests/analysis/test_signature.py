"""Signatures are equal for one structure, exact ones for interchangeable blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.signature import work
from pararealize.compiler import pararealize
from pararealize.tracing.front_end import capture
from tests.models import SmallResNet


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


def test_signatures_ignore_names_and_widths() -> None:
    narrow = chain_of(SmallResNet(width=4), torch.randn(2, 3, 8, 8))
    wide = chain_of(SmallResNet(width=6), torch.randn(2, 3, 8, 8))
    assert [b.signature for b in narrow.blocks] == [b.signature for b in wide.blocks]
    assert not {b.exact_signature for b in narrow.blocks} & {b.exact_signature for b in wide.blocks}
    assert narrow.blocks[1].exact_signature == narrow.blocks[2].exact_signature
    assert narrow.blocks[3].signature != narrow.blocks[4].signature


def test_blocks_that_run_in_another_order_are_one_structure() -> None:
    class Either(nn.Module):
        def __init__(self, flipped: bool) -> None:
            super().__init__()
            self.a, self.b, self.flipped = nn.Linear(4, 4), nn.Linear(4, 4), flipped

        def forward(self, x: Tensor) -> Tensor:
            if self.flipped:
                right = torch.relu(self.b(x))
                return self.a(x) + right
            left = self.a(x)
            return left + torch.relu(self.b(x))

    chain = chain_of(nn.Sequential(Either(False), Either(True), Either(False)), torch.randn(2, 4))
    assert len({block.signature for block in chain.blocks}) == 1
    assert len({block.exact_signature for block in chain.blocks}) == 2


def test_the_batch_of_the_example_is_no_part_of_the_structure() -> None:
    """Windows of a map among the samples, as in shifted-window attention, and sizes of the batch."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x.view(x.size(0) * 3, 2, 4)).view(x.size(0), 6, 4)
            return x + y * torch.ones(x.size(0), 1, 1)

    model = nn.Sequential(*(Windows() for _ in range(3)))
    two, five = chain_of(model, torch.randn(2, 6, 4)), chain_of(model, torch.randn(5, 6, 4))
    assert [b.exact_signature for b in two.blocks] == [b.exact_signature for b in five.blocks]


@pytest.mark.parametrize(
    "module, x, expected",
    [
        (nn.Linear(8, 5), torch.randn(2, 7, 8), 7 * 5 + 7 * (8 * 5 + 5)),
        (nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8), 64 * 4 + 64 * (3 * 4 * 9 + 4)),
        (nn.Embedding(10, 6), torch.randint(10, (2, 5)), 5 * 6 + 5 * 60),
        (nn.ReLU(), torch.randn(2, 3, 4), 12),
    ],
)
def test_work_is_parameters_times_positions(module: nn.Module, x: Tensor, expected: float) -> None:
    model = nn.Sequential(module, nn.Flatten(), nn.Linear(module(x)[0].numel(), 2))
    captured = capture(model, x)
    node = next(node for node in captured.graph.nodes if node.target == "0")
    assert work(node, captured.graph_module.get_submodule) == expected


def test_work_of_functions_counts_the_parameters_that_they_read() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 8))
            self.register_buffer("fixed", torch.randn(5, 8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight) + nn.functional.linear(x, self.fixed).sum()

    captured = capture(Functional(), torch.randn(2, 7, 8))
    amounts = {n.name: work(n, captured.graph_module.get_submodule) for n in captured.graph.nodes if n.op != "output"}
    assert (amounts["linear"], amounts["linear_1"], amounts["sum_1"]) == (35 + 7 * 40, 35, 0)


class Stacked(nn.Module):
    """Layers whose weights are slices of one parameter."""

    def __init__(self, slices: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.slices, self.weight = slices, nn.Parameter(torch.randn(4, 8, 8) / 3)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for weight in self.slices(self.weight):
            x = x + torch.tanh(x @ weight)
        result: Tensor = self.last(x)
        return result


@pytest.mark.parametrize(
    "slices",
    [
        lambda w: [w[k] for k in range(4)],
        lambda w: [w[k].T for k in range(4)],
        lambda w: [w.select(0, k) for k in range(4)],
        lambda w: [w[k : k + 1].squeeze(0) for k in range(4)],
        lambda w: [w.view(32, 8).narrow(0, 8 * k, 8) for k in range(4)],
        lambda w: w.unbind(),
        lambda w: [part[0].t() for part in w.chunk(4)],
        list,
    ],
)
def test_slices_of_a_parameter_are_weights(slices: Callable[[Tensor], Sequence[Tensor]]) -> None:
    model, x = Stacked(slices).eval(), torch.randn(2, 6)
    chain = chain_of(model, x)
    assert [(block.parameters, len(block.nodes)) for block in chain.blocks] == [(64, 3)] * 4
    assert len({block.exact_signature for block in chain.blocks}) == 1
    net = pararealize(model, n=4, example_inputs=x, coarse="linear").eval()
    assert torch.equal(net.iterate(x, 3), model(x))
    assert net.plan.stem.parameters + net.plan.head.parameters == 6 * 8 + 8 + 8 * 3 + 3
