"""What stands in one argument of a forward -> its form: where the tensors are, and what else the example had there.

A form reads the tensors out of a call's argument, writes these reads into a graph, and says what is wrong with a value
that is not of it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import operator
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import fx

from pararealize.errors import ExampleError

from .containers import Step, items_of

__all__ = [
    "Argument",
    "ContainerForm",
    "PlainForm",
    "TensorForm",
    "argument_of",
    "read_tensors",
    "tensor_names",
    "write_reads",
]

_EMPTY = inspect.Parameter.empty
_PLAIN = (torch.Tensor, str, int, float, bool, complex, torch.dtype, torch.device)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TensorForm:
    """A tensor, under the name that the captured graph has for it."""

    name: str

    def __str__(self) -> str:
        return "a tensor"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PlainForm:
    """A value that is no tensor."""

    value: Any

    def __str__(self) -> str:
        return repr(self.value)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ContainerForm:
    """A container: the steps to its items, and what stands there."""

    kind: str
    items: tuple[tuple[Step, _Form], ...]

    def __str__(self) -> str:
        return f"a {self.kind} of {', '.join(str(step.key) for step, _ in self.items) or 'nothing'}"


_Form = TensorForm | PlainForm | ContainerForm


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Argument:
    """One argument of the forward.

    Attributes:
        name: its name.
        form: what the example had there; the default where it had nothing.
        default: what a call of the converted network that leaves it out means; ``inspect.Parameter.empty`` for none.
        is_absent: whether the example left it out.
    """

    name: str
    form: _Form
    default: Any
    is_absent: bool

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value for it; ``None`` where nothing is."""
        if value is self.default and self.is_absent:  # also where a default that code cannot show gave way to None
            return None
        return _fault(self.form, value, "", self)


def argument_of(name: str, default: Any, value: Any, leaves: dict[str, Any]) -> Argument:
    """The argument of a name, with what the example has there; the example's leaves are added to ``leaves`` by name."""
    is_absent = value is _EMPTY
    form: _Form = PlainForm(default) if is_absent else _form(name, value, leaves)
    return Argument(name, form, default if default is _EMPTY or _is_literal(default) else None, is_absent)


def _form(path: str, value: Any, leaves: dict[str, Any]) -> _Form:
    items = items_of(value)
    if items is not None:
        if faults := [step.key for step, _ in items if not _is_literal(step.key) and not isinstance(step.key, Enum)]:
            raise ExampleError(
                f"an example input is a {type(value).__name__} with the key {faults[0]!r}, which no code can show; "
                "use texts or numbers as keys"
            )
        forms = tuple((step, _form(f"{path}_{step.key}", item, leaves)) for step, item in items)
        return ContainerForm(type(value).__name__, forms)
    if value is not None and not isinstance(value, _PLAIN):
        raise ExampleError(
            f"an example input is a {type(value).__name__}; only tensors and plain values can be inputs, in containers "
            "or not: wrap the model in a module whose forward takes the tensors one by one"
        )
    name = re.sub(r"\W", "_", path)
    while name in leaves:
        name += "_"
    leaves[name] = value
    return TensorForm(name) if isinstance(value, torch.Tensor) else PlainForm(value)


def _is_literal(value: Any) -> bool:
    """Whether printed code can show a value."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def read_tensors(form: _Form, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors within a value of a form, with the names that the captured graph has for them."""
    if isinstance(form, TensorForm):
        yield form.name, value
    elif isinstance(form, ContainerForm):
        for step, item in form.items:
            yield from read_tensors(item, step.read(value))


def tensor_names(form: _Form) -> Iterator[str]:
    """The names that the captured graph has for the tensors of a form."""
    if isinstance(form, TensorForm):
        yield form.name
    elif isinstance(form, ContainerForm):
        for _, item in form.items:
            yield from tensor_names(item)


def write_reads(graph: fx.Graph, form: _Form, node: fx.Node, path: str, nodes: dict[str, fx.Node]) -> list[fx.Node]:
    """Read the tensors within a value, a call for each step; all of the calls."""
    written: list[fx.Node] = []
    if isinstance(form, TensorForm):
        nodes[form.name] = node
    elif isinstance(form, ContainerForm):
        for step, item in form.items:
            if next(tensor_names(item), None) is None:
                continue
            read = getattr if step.is_attribute else operator.getitem
            name = re.sub(r"\W", "_", f"{path}_{step.key}")
            child = graph.create_node("call_function", read, (node, step.key), name=name)
            written += [child, *write_reads(graph, item, child, name, nodes)]
    return written


def _fault(form: _Form, value: Any, path: str, argument: Argument) -> str | None:
    """What is wrong with a value at a place within an argument."""
    if isinstance(form, TensorForm):
        return None if isinstance(value, torch.Tensor) else _misfit(form, value, path, argument)
    if isinstance(form, PlainForm):
        return None if _equal(form.value, value) else _misfit(form, value, path, argument)
    if not _has_steps(form, value):
        return _misfit(form, value, path, argument)
    for step, item in form.items:
        fault = _fault(item, step.read(value), f"{path}{step}", argument)
        if fault is not None:
            return fault
    return None


def _has_steps(form: ContainerForm, value: Any) -> bool:
    """Whether a value has the items of a form, and no others."""
    if any(step.is_attribute for step, _ in form.items):
        return all(step.is_attribute and hasattr(value, step.key) for step, _ in form.items)
    if isinstance(value, Mapping):
        return len(value) == len(form.items) and all(step.key in value for step, _ in form.items)
    items = items_of(value)  # of a list, a tuple, a queue
    return items is not None and [step for step, _ in items] == [step for step, _ in form.items]


def _equal(captured: Any, value: Any) -> bool:
    if value is captured:
        return True
    if isinstance(value, torch.Tensor):
        return False
    try:
        return bool(value == captured)
    except (ValueError, RuntimeError, TypeError):  # an array, whose comparison is another
        return False


def _misfit(form: _Form, value: Any, path: str, argument: Argument) -> str:
    place = f"{argument.name}{path}" if path else repr(argument.name)
    items = items_of(value)
    kind = type(value).__name__
    what = "a tensor" if isinstance(value, torch.Tensor) else repr(value)[:80]
    if items is not None:
        what = f"a {kind} of {', '.join(str(step.key) for step, _ in items) or 'nothing'}"
    if argument.is_absent:
        return (
            f"the input {place} is {what}, and the network was captured without it ({form}), which is fixed in it; "
            "leave it out, or convert again with it in example_inputs"
        )
    if isinstance(form, PlainForm) and not isinstance(value, torch.Tensor):
        return (
            f"the input {place} is {what}, and the network was captured with {form}, which is fixed in it; "
            "pass that value, or convert again with another one in example_inputs"
        )
    return (
        f"the input {place} is {what}, and the network was captured with {form}, which is fixed in it; "
        f"pass {form} there, or convert again with {what} in example_inputs"
    )
