"""Pieces of a graph compose to the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.compiler import pararealize
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


class Pooled(nn.Module):
    """A branch that is pooled to one position, and brought to the size of what it is added to."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.layer(x.mean((2, 3), keepdim=True))
        return x + nn.functional.interpolate(mean, size=x.shape[-2:], mode="nearest")


class Convolved(nn.Module):
    """A residual block; with a stride it halves its input."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.layer = nn.Conv2d(channels, channels, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + (x if self.stride == 1 else x[..., ::2, ::2])


@given(
    st.lists(st.sampled_from(["convolved", "halved", "pooled"]), min_size=3, max_size=6).filter(
        lambda kinds: kinds.count("halved") <= 2  # at one position, a mean is the value itself, and a guard says so
    ),
    st.integers(1, 3),
)
@settings(max_examples=12)
def test_sizes_are_read_from_what_a_piece_computes_where_its_inputs_do_not_tell_them(kinds: list[str], n: int) -> None:
    makers = {"convolved": lambda: Convolved(3, 1), "halved": lambda: Convolved(3, 2), "pooled": lambda: Pooled(3)}
    blocks = nn.Sequential(*(makers[kind]() for kind in kinds))
    model = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), blocks, nn.Conv2d(3, 2, 1)).eval()
    chain = chain_of(model, torch.randn(2, 2, 32, 32))
    net = pararealize(model, min(n, len(chain.blocks)), example_inputs=torch.randn(2, 2, 32, 32), coarse="linear")
    for shape in ((2, 2, 32, 32), (1, 2, 40, 18)):
        x = torch.randn(shape)
        assert torch.equal(net.iterate(x, net.plan.n - 1) if net.plan.n > 1 else net(x), model(x))
