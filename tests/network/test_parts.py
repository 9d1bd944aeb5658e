"""The parts and values of equation (3) are found in the emitted graph, whatever the model's own names are."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.network.parts import part_modules, parts_by_node, read_equation, read_parts
from tests.models import MaskedTransformer, Perceptron, SharedBias, SmallResNet

NETWORKS = {
    "convolutions": (SmallResNet, torch.randn(4, 3, 8, 8)),
    "masks": (MaskedTransformer, torch.randint(0, 11, (4, 5))),
    "shared values": (SharedBias, torch.randn(4, 6)),
}


def converted(name: str, coarse: str = "linear", n: int = 3) -> PararealModule:
    make, x = NETWORKS[name]
    return pararealize(make(), n=n, example_inputs=x, coarse=coarse)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("coarse", ["linear", "exact"])
def test_every_part_and_value_is_found(name: str, coarse: str) -> None:
    """Against the names that the graph prints, which the reader does not look at."""
    net = converted(name, coarse)
    nodes = read_equation(net.graph)
    assert set(nodes.parts) - {"context"} == {"stem", "C2", "C3", "g1", "g2", "g3", "F1", "F2", "head"}
    letters = {"x": (nodes.x, 1, 3), "y": (nodes.y, 1, 3), "r": (nodes.r, 1, 2)}
    for letter, (values, first, last) in letters.items():
        assert {i: node.name for i, node in values.items()} == {(0, j): f"{letter}_{j}" for j in range(first, last + 1)}
    assert {j: node.name for (_, j), node in nodes.z.items()} == {1: "y_1", 2: "z_2", 3: "z_3"}
    assert [nodes.calls[f"F{j}"].name for j in (1, 2)] == ["F_1", "F_2"]
    blocks = [part for part in nodes.parts.values() if part.kind == "coarse"]
    assert [part.is_segment_itself for part in blocks] == [coarse == "exact"] * 2
    assert read_parts(net.graph) == nodes.parts == net.network_parts


def test_inputs_may_have_the_letters_as_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Perceptron()

        def forward(self, y_1: Tensor) -> Tensor:
            return self.net(y_1)

    net = pararealize(Named(), n=2, example_inputs=torch.randn(4, 8), coarse="exact")
    nodes = read_equation(net.graph)
    assert [node.name for node in nodes.graph.find_nodes(op="placeholder")] == ["y_1"]
    assert nodes.parts["F1"].target == "segments.g2"
    assert nodes.r[0, 1].all_input_nodes == [nodes.y[0, 1], nodes.x[0, 2]]
    assert nodes.z[0, 2].all_input_nodes == [nodes.y[0, 2], nodes.calls["F1"]]


def test_one_segment_has_no_residual() -> None:
    nodes = read_equation(converted("convolutions", n=1).graph)
    assert (nodes.r, nodes.z) == ({}, {(0, 1): nodes.y[0, 1]})
    assert nodes.calls["head"].all_input_nodes[0] is nodes.y[0, 1]


def test_what_comes_before_a_residual_is_equation_2() -> None:
    nodes = read_equation(converted("convolutions").graph)
    early = nodes.before([*nodes.r.values(), nodes.calls["head"]])
    assert [node.name for node in early] == ["x", "x_1", "x_2", "x_3", "y_1", "y_2", "y_3"]
    assert nodes.before(nodes.graph.find_nodes(op="placeholder")) == []


def test_context_is_what_is_read_beside_the_activation() -> None:
    nodes = read_equation(converted("masks").graph)
    names = [node.name for node in nodes.context_of("g2")]
    assert names
    assert tuple(names) == nodes.parts["g2"].reads
    assert set(names) <= {node.name for node in nodes.graph.nodes if node.target is operator.getitem}
    assert read_equation(converted("convolutions").graph).context_of("head") == []


def test_nodes_that_call_no_part() -> None:
    net = converted("convolutions")
    others = [node.name for node in net.graph.nodes if node not in parts_by_node(net.graph)]
    assert others == ["x", "r_1", "z_2", "r_2", "z_3", "output"]


def test_modules_of_parts() -> None:
    net = converted("convolutions")
    modules = {part.name: module for part, module in part_modules(net, net.network_parts.values()).items()}
    assert modules["stem"] is net.stem
    assert modules["C3"] is net.adapters["C3"]
    assert modules["g2"] is net.segments["g2"]
    assert modules["F1"] is net.coarse["F1"]
    exact = converted("convolutions", "exact")
    assert "coarse" not in {part.kind for part in part_modules(exact, exact.network_parts.values())}


@pytest.mark.parametrize("coarse", ["linear", "exact"])
def test_windows_have_numbers_and_the_last_one_ends_on_the_last_device(coarse: str) -> None:
    net = pararealize(SmallResNet(), 3, example_inputs=torch.randn(4, 3, 8, 8), coarse=coarse, windows=["layer2.1"])
    nodes = read_equation(net.graph)
    assert [window.n for window in net.plan.windows] == [3, 2]
    assert {index: node.name for index, node in nodes.y.items()} == {
        (1, 1): "y_1_1", (1, 2): "y_1_2", (1, 3): "y_1_3", (2, 1): "y_2_1", (2, 2): "y_2_2",
    }  # fmt: skip
    assert nodes.z[1, 3].name == "w_1"
    assert nodes.x[2, 1] is nodes.z[1, 3]
    assert nodes.calls["C2_2"].all_input_nodes == [nodes.z[1, 3]]
    homes = {name: part.home for name, part in nodes.parts.items()}
    assert homes == {
        "stem": 1, "C1_2": 2, "C1_3": 3, "g1_1": 1, "g1_2": 2, "g1_3": 3, "F1_1": 2, "F1_2": 3,
        "C2_2": 3, "g2_1": 2, "g2_2": 3, "F2_1": 3, "head": 3,
    }  # fmt: skip
