"""Pieces of a graph compose to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.tracing.extraction import device_of, subgraph
from pararealize.tracing.front_end import capture
from tests.models import MaskedTransformer, Perceptron, SharedBias, SmallResNet


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


@pytest.mark.parametrize(
    "model, x",
    [
        (SmallResNet(), torch.randn(2, 3, 8, 8)),
        (MaskedTransformer(), torch.randint(0, 11, (2, 5))),
        (SharedBias(), torch.randn(2, 6)),
        (Perceptron(), torch.randn(2, 8)),
    ],
)
def test_pieces_compose_to_the_whole(model: nn.Module, x: Tensor) -> None:
    model.eval()
    chain = chain_of(model, x)
    values = dict(zip((n for n in chain.capture.graph.nodes if n.op == "placeholder"), [x], strict=True))
    interpreter = torch.fx.Interpreter(chain.capture.graph_module)
    interpreter.garbage_collect_values = False
    expected = interpreter.run(x)
    values = interpreter.env
    half = len(chain.blocks) // 2
    z = values[chain.blocks[0].input]
    for first, last in ((0, half - 1), (half, len(chain.blocks) - 1)):
        z = chain.module(first, last)(z.clone(), *(values[node] for node in chain.context(first, last)))
    head = chain.piece(chain.head)(z, *(values[node] for node in chain.head.context))
    assert torch.equal(head, expected)
    assert torch.equal(chain.piece(chain.stem)(x), values[chain.blocks[0].input]) or chain.capture.graph_module.training


def test_a_piece_runs_wherever_its_input_is() -> None:
    """Devices that were written down are read from the piece's first input, however the device is passed."""

    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + torch.arange(x.shape[1], device=x.device)
            return y * torch.ones(x.shape[1]).to(x.device) + y.cos()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.positions, self.last = nn.Linear(4, 4), Positions(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.positions(self.first(x)))

    captured = capture(Model(), torch.randn(2, 4))
    named = {node.name: node for node in captured.graph.nodes}
    piece = torch.fx.GraphModule(captured.graph_module, subgraph([named["first"]], named["last"].args[0]))
    x = torch.randn(3, 4)
    assert torch.equal(piece(x), Positions()(x))
    assert piece(x.to("meta")).is_meta
    assert sum(node.target is device_of for node in piece.graph.nodes) == 1
    whole = subgraph([], [named["arange"]])
    assert torch.equal(torch.fx.GraphModule(captured.graph_module, whole)()[0], torch.arange(4))


def test_sizes_of_the_batch_are_read_from_the_pieces_own_input() -> None:
    """A size of a tensor that the piece does not see: some samples' windows, and one more."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.view(-1, 2)
            y = self.first(x)
            more = torch.cat([windows, windows[:1]])
            return self.last(y).view(-1, 2) * torch.ones(windows.shape[0], 1) + torch.ones(more.size(0), 1)[1:]

    model = Windows()
    captured = capture(model, torch.randn(2, 4))
    named = {node.name: node for node in captured.graph.nodes}
    output = next(node for node in captured.graph.nodes if node.op == "output")
    piece = torch.fx.GraphModule(captured.graph_module, subgraph([named["last"]], output))
    for rows in (2, 5):
        x = torch.randn(rows, 4)
        assert torch.equal(piece(model.last(model.first(x))), model(x))


def test_what_is_there_for_its_side_effects_is_copied_too() -> None:
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.watch = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            self.watch(y)
            return y * 2

    captured = capture(Watching(), torch.randn(2, 4))
    nodes = [node for node in captured.graph.nodes if node.op.startswith("call")]
    begin, end = captured.graph.find_nodes(op="placeholder")[0], nodes[-1]
    without, besides = subgraph([begin], end), subgraph([begin], end, ("renamed",), besides=nodes)
    assert [node.target for node in besides.nodes if node.op == "call_module"] == ["linear", "watch"]
    assert [node.target for node in without.nodes if node.op == "call_module"] == ["linear"]
    assert next(iter(besides.nodes)).target == "renamed"
