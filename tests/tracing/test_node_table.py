"""The table knows, after every call, which node holds the present value of each tensor."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pararealize.tracing.node_table import NodeTable, UnreadableError, storage_of
from pararealize.tracing.operations import after


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("scale", torch.ones(3))
        self.shift = torch.arange(3.0)


@pytest.fixture
def model() -> Model:
    """With fake parameters and buffers, as the recorder swaps them."""
    model, mode = Model(), FakeTensorMode(allow_non_fake_inputs=True)
    model._parameters["weight"] = mode.from_tensor(model.weight)  # type: ignore[assignment]
    model._buffers["scale"] = mode.from_tensor(model.scale)
    return model


@pytest.fixture
def table(model: Model) -> NodeTable:
    table = NodeTable(fx.Graph(), model)
    table.add_attribute(model.weight, "weight")
    table.add_attribute(model.scale, "scale")
    table.add_constant(model.shift, "shift")
    return table


def enter(table: NodeTable, tensor: Tensor, name: str = "x") -> fx.Node:
    node = table.graph.placeholder(name)
    table.add_input(tensor, node)
    return node


def call(table: NodeTable, function: Any, *args: Tensor, changes: bool = False) -> tuple[Any, fx.Node]:
    """Do as the recorder does: run, write, and say what changed and what came out."""
    result = function(*args)
    node = table.graph.call_function(function, table.argument(args))
    node.meta["trainable"] = any(map(table.is_trainable, args))
    if changes:
        table.add_change(args[0], node, [result])
    table.add_result(result, node)
    return result, node


def test_attributes_are_read_by_name_and_once(table: NodeTable, model: Model) -> None:
    nodes = [table.node(tensor) for tensor in (model.weight, model.scale, model.shift, model.weight)]
    assert {node.op for node in nodes} == {"get_attr"}
    assert [node.target for node in nodes] == ["weight", "scale", "shift", "weight"]
    assert nodes[0] is nodes[3]
    assert list(table.constants) == ["shift"]
    assert [node.meta["trainable"] for node in nodes[:3]] == [True, False, False]


def test_a_tensor_of_the_forwards_own_becomes_a_constant(table: NodeTable) -> None:
    made = torch.zeros(2)
    assert table.node(made).target == "_constant_0"
    assert table.constants["_constant_0"] is made
    with FakeTensorMode():
        hidden = torch.zeros(2)
    with pytest.raises(UnreadableError, match="could not see it"):
        table.node(hidden)


def test_a_change_is_seen_by_all_that_share_the_memory_and_by_nothing_else(table: NodeTable) -> None:
    x, apart = torch.zeros(4), torch.zeros(4)
    enter(table, x), enter(table, apart, "apart")
    view, view_node = call(table, lambda t: t[:2], x)
    other, other_node = call(table, lambda t: t + 1, x)
    result, change = call(table, lambda t: t.add_(1), view, changes=True)
    assert result is view
    assert table.node(view) is change, "the result is the tensor itself, changed"
    read = table.node(x)
    assert (read.target, read.args) == (after, (next(iter(table.graph.nodes)), change))
    assert table.node(x) is read, "until the next change"
    assert table.node(other) is other_node
    assert table.node(apart).op == "placeholder"
    assert view_node in change.args


def test_two_changes_that_nothing_reads_between_both_come_first(table: NodeTable) -> None:
    x = torch.zeros(4)
    enter(table, x)
    view, _ = call(table, lambda t: t.view(2, 2), x)
    changes = [call(table, lambda t: t.add_(1), view, changes=True)[1] for _ in range(2)]
    read = table.node(x)
    assert read.args[1] is changes[1]
    assert read.args[0].target is after
    assert read.args[0].args[1] is changes[0]


def test_what_a_call_changes_and_gives_back_is_its_result(table: NodeTable) -> None:
    """Two views of one memory, as ``torch._foreach_add_`` may be given: each changes the other, too."""
    x = torch.zeros(4)
    enter(table, x)
    views = [call(table, lambda t: t[:2], x)[0], call(table, lambda t: t[2:], x)[0]]
    node = table.graph.call_function(torch._foreach_add_, (table.argument(views), 1))
    for view in views:
        table.add_change(view, node, views)
    table.add_result(views, node)
    assert [table.node(view).args for view in views] == [(node, 0), (node, 1)]
    assert table.node(x).args[1] is node


def test_a_stand_in_has_the_memory_of_what_it_stands_for(table: NodeTable) -> None:
    x, stand_in, again, other = (torch.zeros(2) for _ in range(4))
    assert len({table.memory(t) for t in (x, stand_in, again, other)}) == 4
    table.set_memory(stand_in, x)
    table.set_memory(again, stand_in)
    assert table.memory(x[:1]) == table.memory(x) == table.memory(stand_in) == table.memory(again)
    assert table.memory(other) != table.memory(x)


def test_items_of_a_result_are_values_of_their_own(table: NodeTable) -> None:
    x = torch.zeros(2)
    enter(table, x)
    node = table.graph.call_function(lambda t: None, (table.node(x),))
    first, second = torch.zeros(1), torch.zeros(1)
    table.add_result({"first": first, "more": [second, x, "text"]}, node, unchanged={id(x)})
    assert table.node(first).args == (node, "first")
    inner = table.node(second)
    assert inner.args[1] == 0
    assert inner.args[0].args == (node, "more")
    assert table.node(x).op == "placeholder", "it went through, and is the value that it was"


def test_what_a_tensor_comes_from(table: NodeTable, model: Model) -> None:
    x = torch.zeros(3)
    enter(table, x)
    from_weight, _ = call(table, torch.mul, x, model.weight)
    from_buffer, _ = call(table, torch.mul, x, model.scale)
    assert [table.is_trainable(t) for t in (model.weight, from_weight)] == [True, True]
    assert not any(table.is_trainable(t) for t in (x, model.scale, model.shift, from_buffer, torch.zeros(1)))
    assert table.is_computed(from_weight)
    assert table.is_computed(from_buffer)
    assert not table.is_computed(model.scale)
    assert not table.is_computed(torch.zeros(1))
    assert [table.is_of_model(t) for t in (model.weight, model.scale[1:], model.shift, x)] == [True, True, True, False]


Pair = collections.namedtuple("Pair", ["a", "b"])


def test_arguments_as_fx_holds_them(table: NodeTable) -> None:
    x = torch.zeros(2, 3)
    node = enter(table, x)
    given = [x, (x, 1), Pair(x, "a"), {"k": [x, None]}, slice(0, x, None), ..., torch.float32, range(3), x.shape]
    held = table.argument(given)
    assert held[:5] == [node, (node, 1), (node, "a"), {"k": [node, None]}, slice(0, node, None)]
    assert held[5:] == [..., torch.float32, range(3), (2, 3)]
    assert type(held[2]) is tuple
    for refused in ({1: x}, object(), {x}):
        with pytest.raises(UnreadableError, match=f"passes a {type(refused).__name__}, which a graph cannot hold"):
            table.argument([refused])


@dataclasses.dataclass
class Output:
    logits: Tensor
    cache: Any = None


def test_outputs_are_rebuilt_in_their_own_class(table: NodeTable) -> None:
    x = torch.zeros(2)
    node = enter(table, x)
    rebuilt = table.output([Output(x), collections.OrderedDict(y=x), {"z": (x,)}])
    assert isinstance(rebuilt, list)
    assert (rebuilt[0].target, rebuilt[0].kwargs) == (Output, {"logits": node})
    assert (rebuilt[1].target, rebuilt[1].args) == (collections.OrderedDict, ({"y": node},))
    assert rebuilt[2] == {"z": (node,)}
    with pytest.raises(UnreadableError, match=r"its output 'cache' is a object.*use_cache"):
        table.output(Output(x, cache=object()))


def test_views_look_into_one_storage() -> None:
    x = torch.zeros(4, 4)
    assert storage_of(x) == storage_of(x[1:].T) == storage_of(x.detach())
    assert storage_of(x) != storage_of(x.clone())
    sparse = torch.eye(2).to_sparse()
    assert storage_of(sparse) != storage_of(torch.eye(2).to_sparse())
