"""A form finds the tensors of an argument wherever they stand, and says what is wrong with a value of another form."""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import fx

from pararealize.errors import ExampleError
from pararealize.tracing.argument_form import Argument, argument_of, read_tensors, tensor_names, write_reads

NONE = inspect.Parameter.empty
X, Y = torch.zeros(2), torch.ones(3)


class Pair(NamedTuple):
    first: Any
    second: Any


def argument(value: Any, default: Any = NONE) -> tuple[Argument, dict[str, Any]]:
    leaves: dict[str, Any] = {}
    return argument_of("batch", default, value, leaves), leaves


VALUES: dict[str, tuple[Any, list[str]]] = {
    "tensor": (X, ["batch"]),
    "dict": ({"cat": X, "num": Y}, ["batch_cat", "batch_num"]),
    "list in a dict": ({"a": [X, {"b": Y}], "n": 3}, ["batch_a_0", "batch_a_1_b"]),
    "named tuple": (Pair(X, (Y, None)), ["batch_first", "batch_second_0"]),
    "number": (2.5, []),
}


@pytest.mark.parametrize("value, names", VALUES.values(), ids=VALUES)
def test_tensors_are_named_by_where_they_stand(value: Any, names: list[str]) -> None:
    made, leaves = argument(value)
    assert list(tensor_names(made.form)) == names
    assert dict(read_tensors(made.form, value)).keys() == set(names)
    assert [name for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)] == names
    assert made.fault(value) is None


@pytest.mark.parametrize("value, names", VALUES.values(), ids=VALUES)
def test_a_graph_reads_what_the_form_reads(value: Any, names: list[str]) -> None:
    made, _ = argument(value)
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    write_reads(graph, made.form, graph.placeholder("batch"), "batch", nodes)
    graph.output(tuple(nodes.values()))
    graph.lint()
    read = fx.GraphModule(torch.nn.Module(), graph)(value)
    assert list(nodes) == names
    assert all(a is b for a, b in zip(read, dict(read_tensors(made.form, value)).values(), strict=True))


@pytest.mark.parametrize(
    "captured, value, words",
    [
        (X, None, "'batch' is None, and the network was captured with a tensor"),
        (None, X, "'batch' is a tensor, and the network was captured with None"),
        ({"a": X}, {"b": X}, "a dict of b, and the network was captured with a dict of a"),
        ({"a": [X, 2]}, {"a": [X, 3]}, "batch.*'a'.*1.* is 3, and the network was captured with 2"),
        ([X, Y], [X], "a list of 0, and the network was captured with a list of 0, 1"),
        (Pair(X, Y), (X, Y), "captured with a Pair of first, second"),
    ],
)
def test_a_value_of_another_form_has_a_fault(captured: Any, value: Any, words: str) -> None:
    fault = argument(captured)[0].fault(value)
    assert fault is not None
    assert re.search(words, fault), fault


def test_what_was_left_out_is_named_so_and_may_be_left_out() -> None:
    made, leaves = argument(NONE, default=None)
    assert made.is_absent
    assert leaves == {}
    assert made.fault(None) is None
    fault = made.fault(X)
    assert fault is not None
    assert "captured without it (None)" in fault


@pytest.mark.parametrize("value, words", [({(1, X): X}, "which no code can show"), ({"a": object()}, "a object; only")])
def test_what_no_graph_can_hold_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ExampleError, match=words):
        argument(value)
