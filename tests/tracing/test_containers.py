"""Nested values come apart into leaves, in order, and together again, in the classes that they had."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from pararealize.tracing.containers import copied, items_of, leaves_of, map_leaves, nesting_of, tensors_of

Point = namedtuple("Point", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    tokens: Any
    length: int = 0

    def __post_init__(self) -> None:
        assert self.length >= 0


@dataclasses.dataclass(slots=True)
class Slotted:
    tokens: Any


class ListOfTheirs(list[Any]):
    pass


class DictOfTheirs(dict[str, Any]):
    pass


class Registered:
    def __init__(self, value: Any) -> None:
        self.value = value


pytree.register_pytree_node(
    Registered,
    lambda r: ([r.value], None),
    lambda values, _: Registered(*values),
    flatten_with_keys_fn=lambda r: ([(pytree.GetAttrKey("value"), r.value)], None),
)

VALUES = [
    ({"a": 1, "b": [2, 3]}, ["['a']", "['b'][0]", "['b'][1]"]),
    ((1, (2,)), ["[0]", "[1][0]"]),
    (Point(1, 2), [".x", ".y"]),
    (Frozen({"ids": 1}, 2), [".tokens['ids']", ".length"]),
    (Slotted([1]), [".tokens[0]"]),
    (OrderedDict(b=1, a=2), ["['b']", "['a']"]),
    (UserDict(a=1), ["['a']"]),
    (defaultdict(list, a=1), ["['a']"]),
    (Registered({0: 1}), [".value[0]"]),
    (torch.Size([1, 2]), ["[0]", "[1]"]),
    (MappingProxyType({"a": 1}), ["['a']"]),
    (deque([1, 2]), ["[0]", "[1]"]),
    (ListOfTheirs([1]), ["[0]"]),
    (DictOfTheirs(a=1), ["['a']"]),
]


def paths(value: Any, path: str = "") -> list[str]:
    items = items_of(value)
    if items is None:
        return [path]
    return [inner for step, item in items for inner in paths(item, f"{path}{step}")]


@pytest.mark.parametrize("value, expected", VALUES, ids=lambda value: type(value).__name__)
def test_steps_lead_to_every_leaf_and_copies_are_of_the_same_class(value: Any, expected: list[str]) -> None:
    assert paths(value) == expected
    for path, leaf in zip(expected, leaves_of(value), strict=True):
        assert eval(f"value{path}") == leaf
    doubled = map_leaves(lambda leaf: 2 * leaf, value)
    assert type(doubled) is type(value)
    assert list(leaves_of(doubled)) == [2 * leaf for leaf in leaves_of(value)]
    assert list(leaves_of(value)) != list(leaves_of(doubled))  # the value itself stays


def test_leaves_are_tensors_and_what_is_no_container() -> None:
    for leaf in (torch.zeros(2), None, "text", 1.5, Frozen, object()):
        assert items_of(leaf) is None


@given(
    st.recursive(
        st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_copy_with_the_same_leaves_is_the_value(value: Any) -> None:
    assert map_leaves(lambda leaf: leaf, value) == value
    assert list(leaves_of(value)) == pytree.tree_leaves(value)


def test_copies_may_be_written_into() -> None:
    x, number = torch.zeros(2), object()
    copy = copied({"a": x, "b": (x, torch.ones(1)), "number": number})
    copy["a"] += 1
    assert copy["b"][0] is copy["a"], "as in the value"
    assert (x.tolist(), copy["a"].tolist(), copy["b"][1].tolist(), copy["number"]) == ([0, 0], [1, 1], [1], number)


def test_nestings_are_told_by_classes_and_keys_and_not_by_leaves() -> None:
    x = torch.ones(2)
    assert nesting_of({"a": [x, 1]}) == nesting_of({"a": [2, None]})
    assert hash(nesting_of(Frozen({"ids": x}))) == hash(nesting_of(Frozen({"ids": 3})))
    others = [{"a": (x, 1)}, {"b": [x, 1]}, {"a": [x]}, OrderedDict(a=[x, 1]), [x, 1], x]
    assert all(nesting_of({"a": [x, 1]}) != nesting_of(other) for other in others)
    assert nesting_of({"a": 1, "b": 2}) != nesting_of({"b": 1, "a": 2})


def test_tensors_in_dataclasses_are_found() -> None:
    x, y = torch.ones(1), torch.ones(2)
    assert [len(tensor) for tensor in tensors_of([Frozen({"ids": x}, 2), Slotted((y, "text"))])] == [1, 2]
