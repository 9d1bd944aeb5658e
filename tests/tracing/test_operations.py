"""What a call is written down as does the same as the call."""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict, namedtuple
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.overrides import TorchFunctionMode

from pararealize.tracing.operations import (
    after,
    describe,
    fields_of,
    is_computed,
    setitem,
    tensors_in,
)

OPERATORS = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "eq", "ne", "gt", "ge"]
BITWISE = ["and_", "or_", "xor", "lshift", "rshift"]
IN_PLACE = ["iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"]
IN_PLACE_BITWISE = ["iand", "ior", "ixor"]
OTHERS = {
    "matmul": lambda x: x @ x,
    "negative": lambda x: -x,
    "inverted": lambda x: ~(x > 1),
    "item": lambda x: x[0, :1],
    "method": lambda x: x.view(-1).cumsum(0),
    "method in place": lambda x: x.clone().relu_(),
    "property": lambda x: x.T,
    "another property": lambda x: x.mT,
    "function": lambda x: torch.atan2(x, 2 * x),
    "function of torch.nn": lambda x: F.softmax(x, dim=1),
    "method written in Python": lambda x: x.norm(p=1),
    "split": lambda x: x.split([1, 2])[1],
    "reversed division": lambda x: 1 / x,
    "reversed subtraction": lambda x: 1 - x,
    "reversed power": lambda x: 2**x,
    "reversed quotient": lambda x: 7 // x,
    "reversed remainder": lambda x: 7 % x,
}


def operators(names, call):
    """Calls of functions of :mod:`operator`."""
    return {name: partial(call, getattr(operator, name)) for name in names}


CALLS = {
    **operators(OPERATORS, lambda f, x: f(x, x.flip(0))),
    **operators(BITWISE + IN_PLACE_BITWISE, lambda f, x: f(x.long(), x.long().flip(0))),
    **operators(IN_PLACE, lambda f, x: f(x.clone(), x.flip(0))),
    **{f"reversed {name}": call for name, call in operators(BITWISE, lambda f, x: f(6, x.long())).items()},
    **OTHERS,
}


class Replayed(TorchFunctionMode):
    """Runs what ``describe`` says in the place of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kind, target, arguments = describe(func, args)
        self.kinds.append(kind)
        with torch._C.DisableTorchFunctionSubclass():
            if kind == "call_method":
                return getattr(arguments[0], target)(*arguments[1:], **(kwargs or {}))
            assert kind == "call_function"
            return target(*arguments, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_what_is_written_down_does_the_same(name):
    x = torch.tensor([[1.0, 2.0, 3.5], [3.0, 1.0, 2.0], [2.0, 4.0, 1.0]])
    with Replayed() as mode:
        result = CALLS[name](x)
    assert torch.equal(result, CALLS[name](x))
    assert mode.kinds


def test_methods_properties_and_functions_are_told_apart():
    written = []

    class Listening(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kind, target, arguments = describe(func, args)
            written.append((kind, target, len(arguments)))
            return func(*args, **(kwargs or {}))

    x = torch.ones(2, 2)
    with Listening():
        x.T, x.relu(), torch.relu(x), x[0]
        x[0] = 3
    assert written == [
        ("call_function", getattr, 2),
        ("call_method", "relu", 1),
        ("call_function", torch.relu, 1),
        ("call_function", operator.getitem, 2),
        ("call_function", setitem, 3),
    ]


def test_changes_in_place_as_expressions():
    x = torch.zeros(3)
    assert setitem(x, 1, 5.0) is x
    assert x.tolist() == [0, 5, 0]
    assert after(x, "whatever happened") is x


def test_fields_by_name():
    @dataclasses.dataclass
    class Output:
        logits: int
        cache: None = None

    pair = namedtuple("pair", ["first", "second"])
    assert fields_of(Output(3)) == {"logits": 3, "cache": None}
    assert fields_of(pair(1, 2)) == {"first": 1, "second": 2}
    for other in ((1, 2), {"a": 1}, Output, None, 3):
        assert fields_of(other) is None


def test_tensors_within_containers_in_order():
    a, b, c, d, e = (torch.tensor(i) for i in range(5))
    value = [a, {"x": (b, "text"), "y": OrderedDict(z=c)}, None, slice(d, None, e)]
    assert [int(t) for t in tensors_in(value)] == [0, 1, 2, 3, 4]
    assert list(tensors_in("abc")) == []


def test_what_comes_from_sizes_alone_is_not_computed():
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_method("size", (x, 0))
    made = {
        "range": graph.call_function(torch.arange, (4,)),
        "of the size": graph.call_method("new_zeros", (x, 4)),
        "alike": graph.call_function(torch.ones_like, (x,)),
        "random": graph.call_function(torch.rand_like, (x,)),
        "input": x,
        "attribute": graph.get_attr("weight"),
        "method of the input": size,
    }
    made["sum of sizes"] = graph.call_function(torch.add, (made["range"], made["of the size"]))
    made["sum with the input"] = graph.call_function(torch.add, (made["sum of sizes"], x))
    computed = {name for name, node in made.items() if is_computed(node)}
    assert computed == {"random", "input", "attribute", "method of the input", "sum with the input"}
