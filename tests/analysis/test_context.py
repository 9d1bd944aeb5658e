"""What parts of a network read from outside of themselves, against a walk over the values that really matter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.context import context_of, count_parameters, shared_values
from pararealize.analysis.finder import BlockFinder, BlockSpan
from pararealize.compiler import pararealize
from pararealize.tracing.front_end import capture
from tests.models import MaskedTransformer, Perceptron, SharedBias, SmallResNet


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


def test_masks_are_context_and_no_interface() -> None:
    chain = chain_of(MaskedTransformer(), torch.randint(0, 11, (2, 5)))
    assert [block.kind for block in chain.blocks] == ["MaskedLayer"] * 4
    assert {len(block.context) for block in chain.blocks} == {1}
    assert {node.meta["val"].dtype for block in chain.blocks for node in block.context} == {torch.bool}


def test_values_of_parameters_and_conditioning_that_all_blocks_read() -> None:
    chain = chain_of(SharedBias(), torch.randn(3, 6))
    assert [block.name for block in chain.blocks] == ["layers.0", "layers.1", "layers.2", "layers.3", "last"]
    assert [node.name for node in chain.flow.broadcast] == ["condition"]
    assert [len(block.context) for block in chain.blocks] == [2, 2, 2, 2, 0]


class Tables(nn.Module):
    """Layers that read a normalised table, each its own or all the same, and sizes, constants and a plain input."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(6, 6), nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(6, 6)) for _ in range(4))
        self.shared = shared

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        table = self.tables[0].softmax(0)
        x = self.first(x)
        for i, layer in enumerate(self.layers):
            own = table if self.shared else self.tables[i].softmax(0)
            x = x + torch.relu(layer(x) @ own) * gate * torch.ones(x.size(1))
        return x


def test_a_table_that_one_part_reads_is_its_own_and_one_that_several_read_is_context() -> None:
    inputs = {"x": torch.randn(3, 6), "gate": torch.rand(3, 6)}
    for shared in (True, False):
        chain = find_blocks(capture(Tables(shared), inputs))
        names = [[node.name for node in block.context] for block in chain.blocks]
        assert names == [["softmax", "gate"] if shared else ["gate"]] * len(names)
        assert len(names) == 4
        assert [block.parameters for block in chain.blocks] == [42 + 36] * 4


def test_pieces_need_exactly_their_context() -> None:
    """With its input and its context a run can be computed; each value of the context changes what comes out."""
    model = Tables(shared=True).eval()
    inputs = {"x": torch.randn(3, 6), "gate": torch.rand(3, 6)}
    chain = find_blocks(capture(model, inputs))
    interpreter = torch.fx.Interpreter(chain.capture.graph_module, garbage_collect_values=False)
    interpreter.run(*inputs.values())
    values = interpreter.env
    context = chain.context(1, 2)
    piece, x = chain.module(1, 2), values[chain.blocks[1].input]
    assert torch.equal(piece(x, *(values[node] for node in context)), values[chain.blocks[2].output])
    for changed in context:
        others = [values[node] + 1 if node is changed else values[node] for node in context]
        assert not torch.equal(piece(x, *others), values[chain.blocks[2].output])


def test_the_entering_value_and_sizes_are_no_context() -> None:
    chain = chain_of(Perceptron(), torch.randn(2, 8))
    block = chain.blocks[2]
    assert context_of(chain.flow, block.nodes, block.input, frozenset()) == ()
    assert context_of(chain.flow, block.nodes, block.nodes[0], frozenset()) == (block.input,)


def test_values_that_the_output_or_two_runs_read_are_shared() -> None:
    chain = chain_of(SharedBias(), torch.randn(3, 6))
    flow = chain.flow
    assert shared_values(flow, []) == frozenset(), "all read by one part: the rest of the network"
    runs = BlockFinder(flow).spans()
    (table,) = shared_values(flow, runs)
    assert table.name == "softmax"
    assert shared_values(flow, runs[:1]) == {table}, "the first block and the rest"
    assert shared_values(flow, [BlockSpan(runs[0].first, runs[3].last, "joined", "")]) == frozenset(), (
        "one part reads it, however often"
    )


class Halved(nn.Module):
    """A table that is looked up once, under a frozen parameter, and that every layer takes apart for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(6, 6), nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.table = nn.Embedding(8, 12)
        self.table.weight.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table(torch.arange(x.size(1)))[None]
        x = self.first(x)
        for layer in self.layers:
            sine, cosine = table.chunk(2, dim=-1)
            x = x + torch.relu(layer(x) * sine + cosine)
        return x


def test_a_table_that_every_part_takes_apart_is_computed_once() -> None:
    model, x = Halved().eval(), torch.randn(2, 5, 6)
    chain = chain_of(model, x)
    assert [[node.name for node in block.context] for block in chain.blocks] == [[], *[["getitem"]] * 4]
    net = pararealize(model, n=4, example_inputs=x, coarse="block")
    assert not any("table" in name for name, _ in net.coarse.named_parameters()), "no copies of it"
    assert torch.equal(net.iterate(x, 3), model(x))


class Tied(nn.Module):
    """Two layers with one weight, a frozen one, and functions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c.requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        return F.linear(self.c(x) * self.gain.exp() + self.shift, self.a.weight)


def test_distinct_parameters_are_counted_once() -> None:
    model = Tied()
    captured = capture(model, torch.randn(2, 4))
    chain = find_blocks(captured)
    every = tuple(node for node in captured.graph.nodes if node.op != "output")
    assert count_parameters(chain.flow, every) == sum(p.numel() for p in model.parameters())
    assert count_parameters(chain.flow, tuple(n for n in every if n.target == "b")) == 16
    multiplied = tuple(node for node in every if node.name == "mul")
    assert count_parameters(chain.flow, multiplied) == 4, "through the exponential, and not through the state"
    assert count_parameters(chain.flow, ()) == 0


def test_all_parts_of_a_chain_hold_all_parameters_once() -> None:
    model = SmallResNet()
    chain = chain_of(model, torch.randn(2, 3, 8, 8))
    parts = (chain.stem, *chain.blocks, chain.head)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
