"""A graph written anew computes what the captured one does, but for what stands in the place of nodes."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from pararealize.errors import ExampleError
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.front_end import capture
from pararealize.tracing.graph_copy import GraphCopy

X = torch.randn(3, 4)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.a(x)) * torch.sigmoid(self.b(x))


def nodes(captured, name: str) -> list[fx.Node]:
    return [node for node in captured.graph.nodes if name in str(node.target)]


def test_nothing_replaced_is_the_same_network():
    model = Gated()
    captured = capture(model, X)
    copy = GraphCopy()
    copy.write(captured, {}, ())
    assert len(copy.graph.nodes) == len(captured.graph.nodes)
    placeholder, *others = copy.graph.nodes
    assert CallSignature.begins(placeholder)
    assert not any(node.meta.keys() - {"region"} for node in others)
    assert torch.equal(fx.GraphModule(model, copy.graph)(X), model(X))


def test_something_stands_in_the_place_of_a_node_and_a_branch_is_left_out():
    model = Gated()
    captured = capture(model, X)
    (product,), (gate,) = nodes(captured, "mul"), nodes(captured, "sigmoid")
    copy, called = GraphCopy(), []

    def alone() -> None:
        called.append(len(copy.graph.nodes))
        copy.copies[product] = copy.copies[next(node for node in product.all_input_nodes if node is not gate)]

    copy.write(captured, {product: alone}, {gate})
    assert len(called) == 1
    assert gate not in copy.copies
    assert torch.equal(fx.GraphModule(model, copy.graph)(X), torch.relu(model.a(X)))


class Scaled(Gated):
    def forward(self, x: torch.Tensor, scale: int = 2) -> torch.Tensor:
        return super().forward(x) * scale


def test_plain_values_are_checked_as_in_the_captured_graph():
    model = Scaled()
    copy = GraphCopy()
    copy.write(capture(model, (X, 3)), {}, ())
    written = fx.GraphModule(model, copy.graph)
    assert torch.equal(written(X, 3), model(X, 3))
    with pytest.raises(ExampleError, match="scale"):
        written(X, 4)
