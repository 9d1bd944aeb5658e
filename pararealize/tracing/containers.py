"""A nested value (dicts, lists, named tuples, dataclasses) -> its items and how code reads each; a copy with others.

batch = {"cat": c, "num": [a, b]}        batch["cat"]    batch["num"][0]    batch["num"][1]
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["Step", "copied", "items_of", "leaves_of", "map_leaves", "nesting_of", "on_device", "tensors_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """How one item is read from its container: ``container.key``, or ``container[key]``."""

    key: Any
    is_attribute: bool = False

    def read(self, container: Any) -> Any:
        """The item."""
        return getattr(container, self.key) if self.is_attribute else container[self.key]

    def __str__(self) -> str:
        return f".{self.key}" if self.is_attribute else f"[{self.key!r}]"


def items_of(value: Any) -> list[tuple[Step, Any]] | None:
    """The items of a container with the steps to them; ``None`` for a leaf: a tensor, a number, any other object.

    Containers are mappings, lists and tuples, named tuples, dataclasses, and what is registered with torch's pytree.
    """
    if isinstance(value, torch.Tensor | type):
        return None
    if isinstance(value, Mapping):
        return [(Step(key), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(Step(name, is_attribute=True), getattr(value, name)) for name in value._fields]
    if isinstance(value, list | tuple):
        return [(Step(i), item) for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [
            (Step(field.name, is_attribute=True), getattr(value, field.name)) for field in dataclasses.fields(value)
        ]
    node = pytree.SUPPORTED_NODES.get(type(value))
    if node is None or node.flatten_with_keys_fn is None:
        return None
    pairs, _ = node.flatten_with_keys_fn(value)
    return [(_step(entry), item) for entry, item in pairs]


def _step(entry: Any) -> Step:
    if isinstance(entry, pytree.GetAttrKey):
        return Step(entry.name, is_attribute=True)
    return Step(entry.idx if isinstance(entry, pytree.SequenceKey) else entry.key)


def leaves_of(value: Any) -> Iterator[Any]:
    """What a nested value holds that is no container, in order."""
    items = items_of(value)
    if items is None:
        yield value
    for _, item in items or ():
        yield from leaves_of(item)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of a nested value, in order."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, torch.Tensor)]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """A copy of a nested value, of the same classes, with ``function(leaf)`` in the place of each leaf."""
    items = items_of(value)
    if items is None:
        return function(value)
    return _with_items(value, [(step, map_leaves(function, item)) for step, item in items])


def nesting_of(value: Any) -> Any:
    """What is equal for values that are nested alike: classes, keys in their order, and where the leaves are.

    Example:
        >>> nesting_of({"a": [1, 2]}) == nesting_of({"a": [3, 4]})
        True
        >>> nesting_of({"a": [1, 2]}) == nesting_of({"a": (1, 2)})
        False
    """
    items = items_of(value)
    return None if items is None else (type(value), tuple((step, nesting_of(item)) for step, item in items))


def on_device(value: Any, device: torch.device, *, non_blocking: bool = False) -> Any:
    """A nested value with its tensors on a device; ``non_blocking`` is that of :meth:`torch.Tensor.to`."""
    return map_leaves(
        lambda leaf: leaf.to(device, non_blocking=non_blocking) if isinstance(leaf, torch.Tensor) else leaf, value
    )


def copied(value: Any) -> Any:
    """A nested value of copies that a model may write into; a tensor that stands in several places has one."""
    copies: dict[int, torch.Tensor] = {}

    def copy_of(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.clone()
        return copies[id(leaf)]

    return map_leaves(copy_of, value)


def _with_items(value: Any, items: list[tuple[Step, Any]]) -> Any:
    contents = [item for _, item in items]
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(contents)
    if type(value) in (list, tuple, torch.Size):
        return type(value)(contents)
    if type(value) is dict:
        return {step.key: item for step, item in items}
    node = pytree.SUPPORTED_NODES.get(type(value))
    if node is not None and not dataclasses.is_dataclass(value):  # whose registration may leave out what is None
        _, context = node.flatten_fn(value)
        return node.unflatten_fn(contents, context)
    if isinstance(value, tuple):
        return type(value)(contents)
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return type(value)({step.key: item for step, item in items})  # type: ignore[call-arg]
    twin = copy.copy(value)  # of a class of the user's own, whose constructor may want other arguments
    for step, item in items:
        if step.is_attribute:
            object.__setattr__(twin, step.key, item)  # a frozen dataclass has no other way
        else:
            twin[step.key] = item
    return twin
