"""A call that ``__torch_function__`` sees -> how fx writes it down: kind, target and arguments."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

__all__ = ["CACHED", "after", "computed_calls", "describe", "fields_of", "is_computed", "setitem", "tensors_in"]

_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift", "and", "or", "xor")
_OTHERS = (
    *("neg", "invert", "getitem", "lt", "le", "eq", "ne", "gt", "ge"),
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "ixor", "imod"),
)
_OPERATORS = {f"__{name}__": getattr(operator, f"__{name}__") for name in (*_BINARY, *_OTHERS)}
_REFLECTED = {f"__r{name}__": getattr(operator, f"__{name}__") for name in _BINARY}
CACHED = "_cached_"  # begins the names of tensors that a first pass left as attributes, in the graph of a second one
# Functions that read the size, the type and the device of their tensor, and none of its values.
_FACTORIES = {function for name in ("zeros", "ones", "full", "empty") for function in (f"new_{name}", f"{name}_like")}


def after(value: Any, _happened: Any) -> Any:
    """The value itself, read after something that changed it in place."""
    return value


def setitem(target: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """``target[index] = value`` as an expression: the changed target."""
    target[index] = value
    return target


def fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass or named tuple by name; ``None`` for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    return None


def is_computed(node: fx.Node) -> bool:
    """Whether a value comes from the inputs or the model's own tensors, and not from sizes alone."""
    stack, seen = [node], {node}
    while stack:
        node = stack.pop()
        if node.op in ("placeholder", "get_attr"):
            return True
        if getattr(node.target, "__name__", node.target) not in _FACTORIES:
            sources = [argument for argument in node.all_input_nodes if argument not in seen]
            stack += sources
            seen.update(sources)
    return False


def computed_calls(graph: fx.Graph) -> list[tuple[str, Any]]:
    """The calls whose values come from inputs or from the model's own tensors, in order."""
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        makes = getattr(node.target, "__name__", node.target) not in _FACTORIES
        if node.op == "get_attr" and node.target.startswith(CACHED):
            continue
        if node.op in ("placeholder", "get_attr") or (makes and not computed.isdisjoint(node.all_input_nodes)):
            computed.add(node)
    return [(node.op, node.target) for node in graph.nodes if node in computed and node.op.startswith("call")]


def describe(func: Any, args: tuple[Any, ...]) -> tuple[str, Any, tuple[Any, ...]]:
    """How fx names a call that ``__torch_function__`` saw: (op, target, args).

    Operators become functions of :mod:`operator`, which printed code shows as ``a + b``; other methods stay methods, by
    name, since a method object of ``torch.Tensor`` has no name that code could be printed with.
    """
    name = getattr(func, "__name__", "")
    if name == "__get__":  # a property such as Tensor.T
        return "call_function", getattr, (args[0], func.__self__.__name__)
    if name == "__setitem__":  # gives None, and a graph needs a value to read what was changed
        return "call_function", setitem, args
    if name in _OPERATORS and getattr(torch.Tensor, name, None) is not None:
        return "call_function", _OPERATORS[name], args
    if name in _REFLECTED:
        return "call_function", _REFLECTED[name], (args[1], args[0])
    # methods of Tensor that are written in Python come wrapped, and are known by their module
    if getattr(torch.Tensor, name, None) is func or getattr(func, "__module__", "") == "torch._tensor":
        return "call_method", name, args
    return "call_function", func, args


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor within nested containers, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    if isinstance(value, slice):
        value = value.start, value.stop, value.step
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from tensors_in(item)
