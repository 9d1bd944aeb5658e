"""Cuts are where one activation is alive: the dominators of the output."""

from __future__ import annotations

import re

import networkx as nx
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.flow import dependencies, flow_of
from pararealize.compiler import make_plan, pararealize
from pararealize.errors import CutError, PlanError
from pararealize.tracing.captured import Capture
from pararealize.tracing.front_end import capture
from pararealize.tradeoffs import tradeoff
from tests.models import Growing, RandomGraph, SeveralDepths, SmallResNet, UNet, random_graphs


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


def dominating(captured: Capture) -> set[str]:
    """Nodes through which every path of the state leads to the output: the independent definition of a cut."""
    depends = dependencies(captured.graph)
    graph: nx.DiGraph = nx.DiGraph()
    output = next(node for node in captured.graph.nodes if node.op == "output")
    state = [node for node in captured.graph.nodes if node is not output and depends[node] == (True, True)]
    for node in (*state, output):
        before = [argument for argument in node.all_input_nodes if depends[argument] == (True, True)]
        graph.add_edges_from((argument, node) for argument in before)
        if not before:
            graph.add_edge("input", node)
    above = nx.immediate_dominators(graph, "input")
    found, node = set(), above[output]
    while node != "input":
        if isinstance(node.meta["val"], Tensor):  # not a tuple
            found.add(node.name)
        node = above[node]
    return found


@settings(max_examples=12)
@given(random_graphs())
def test_cuts_are_the_dominators_of_the_output(case: tuple[RandomGraph, Tensor]) -> None:
    model, x = case
    captured = capture(model, x)
    flow = flow_of(captured)
    assume(all(node.users for node in flow.order))  # nothing is kept for its running statistics or random numbers alone
    assert {flow.order[i].name for i in flow.cuts} == dominating(captured)


def test_refused_cuts_say_which_tensors_are_alive() -> None:
    chain = chain_of(SmallResNet(), torch.randn(2, 3, 8, 8))
    shown = [str(cut) for cut in chain.refused]
    assert any("layer1.1.conv2" in line and "2 activations are alive" in line and "4×8×8" in line for line in shown)


class LongSkip(nn.Module):
    """A skip past all blocks, as in SRGAN and EDSR, with layers before and behind that could be cut as well."""

    def __init__(self, depth: int = 8, width: int = 16) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.back = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.front(x)
        for block in self.blocks:
            y = y + block(torch.relu(y))
        return self.back(first + y)


def test_a_skip_past_most_of_the_work_does_not_make_one_block_of_it() -> None:
    model, x = LongSkip().eval(), torch.randn(2, 3, 8, 8)
    chain = chain_of(model, x)
    assert len(chain.blocks) >= 7
    assert [node.name for node in chain.flow.broadcast] == ["front_3"]
    assert torch.equal(pararealize(model, n=4, example_inputs=x).iterate(x, 3), model(x))


def test_skips_are_context_where_they_allow_a_chain() -> None:
    chain = chain_of(UNet(), torch.randn(2, 3, 8, 8))
    assert [block.name for block in chain.blocks] == ["down.3", "up.1", "up.2", "up.3"]
    assert [node.name for node in chain.flow.broadcast] == ["relu", "relu_1"]


def test_networks_without_a_chain_are_refused() -> None:
    for model in (Growing(), SeveralDepths()):
        chain = chain_of(model, torch.randn(2, 4))
        assert len(chain.blocks) == 1
        name = type(model).__name__
        with pytest.raises(
            PlanError, match=rf"n = 3 is out of range: {name} .* \d+ activations are alive: .*from 1 to 1"
        ):
            make_plan(chain, 3)
    with pytest.raises(CutError, match=r"no blocks between cut points: .*leaf_modules"):
        chain_of(nn.LSTM(4, 4), torch.randn(2, 3, 4))


def test_what_nothing_reads_is_not_alive_and_makes_no_cut() -> None:
    """A norm that is there for its running statistics alone: cuts stand before and behind it, none after it."""

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.watch, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            self.watch(y)
            return torch.tanh(self.last(y))

    flow = flow_of(capture(Watching(), torch.randn(2, 4)))
    assert [flow.order[i].name for i in flow.cuts] == ["first", "last", "tanh"]
    assert [cut.after for cut in flow.refused()] == ["watch"]


class LengthFirst(nn.Module):
    """Equal blocks over ``(length, batch, width)``, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).transpose(0, 1)
        for block in self.blocks:
            x = x + block(x).tanh() + x.mean(0, keepdim=True)
        return self.last(x.transpose(0, 1))


class Complex(nn.Module):
    """Equal blocks over complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8, dtype=torch.complex64) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
def test_the_commonest_reason_why_one_value_is_no_interface_is_told() -> None:
    x = torch.randn(4, 9, 8)
    why = r"one value alone is alive, such as transpose \(9, 4, 16\), the batch is not its leading dimension; hand on "
    with pytest.raises(PlanError, match=rf"holds 8\d% of the work: where {why}") as error:
        pararealize(LengthFirst(), n=6, example_inputs=x, coarse="linear")
    assert str(error.value).count("not its leading") == 1
    assert "activations are alive" not in str(error.value)
    told = str(tradeoff(LengthFirst().eval(), [x] * 10, n=[2]))
    assert re.search(rf"no windows are faster than the original: block transpose .*{why}", told)
    with pytest.raises(CutError, match=r"0 cut points among \d+ operations: .*torch.complex64 cannot .*view_as_real"):
        pararealize(Complex(), n=2, example_inputs=torch.randn(2, 8, dtype=torch.complex64))
    residual = flow_of(capture(SmallResNet(), torch.randn(2, 3, 8, 8)))
    assert residual.passed_over() == ""


def test_values_that_cannot_be_interfaces_say_why() -> None:
    class Unfit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            chosen = (self.first(x) > 0).sum(1)
            turned = self.last(chosen[:, None] * torch.ones(4)).t()
            return turned.contiguous().t().split(1, 1)[0].sum(1)

    flow = flow_of(capture(Unfit(), torch.randn(3, 4)))
    why = {cut.after: cut.why for cut in flow.refused()}
    assert why["gt"] == "an interface of torch.bool cannot be corrected"
    assert why["sum_1"] == "an interface of torch.int64 cannot be corrected"
    assert why["t"] == why["contiguous"] == "the batch is not its leading dimension"
    assert why["split"] == "a tuple is alive, not one tensor"
    assert {"first", "last"} <= {flow.order[i].name for i in flow.cuts}
