"""A forward's signature, the example's arguments -> CallSignature: what calls of the converted network look like.

A captured graph has one placeholder for each tensor among the inputs, wherever it is nested. The networks made of it
take the arguments of the original's forward, under their names and in their order, and read the tensors from them:

    def forward(self, batch, scale = 1.0):
        batch_cat = batch['cat']
        batch_num = batch['num']

What else the example held (plain values, ``None``, optional arguments that were left out) has had its part in what was
recorded: a call with something else there is refused.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import fx

from pararealize.errors import ExampleError

from .containers import Step, items_of
from .input_checks import check_names

__all__ = ["Argument", "CallSignature", "as_call", "binds"]

_EMPTY = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A tensor, under the name that the captured graph has for it."""

    name: str

    def __str__(self) -> str:
        return "a tensor"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Plain:
    """A value that is no tensor."""

    value: Any

    def __str__(self) -> str:
        return repr(self.value)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Nest:
    """A container: the steps to its items, and what stands there."""

    kind: str
    items: tuple[tuple[Step, _Form], ...]

    def __str__(self) -> str:
        return f"a {self.kind} of {', '.join(str(step.key) for step, _ in self.items) or 'nothing'}"


_Form = _Tensor | _Plain | _Nest


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


class CallSignature:
    """How the networks made of one capture are called.

    It is called itself, as a node of a graph, to check a call's arguments.

    Args:
        model: the class name of the original.
        arguments: in the order of the forward's signature.
    """

    def __init__(self, model: str, arguments: Sequence[Argument]) -> None:
        self.model, self.arguments = model, tuple(arguments)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.signature = inspect.Signature(
            [inspect.Parameter(argument.name, kind, default=argument.default) for argument in arguments]
        )

    @property
    def __name__(self) -> str:  # as torch.fx prints it
        return "as_captured"

    @classmethod
    def of(cls, model: str, binding: inspect.BoundArguments) -> tuple[CallSignature, dict[str, Any]]:
        """The signature of a forward that was called so, and the example's leaves by the names of their placeholders.

        Raises:
            ExampleError: an input is neither a tensor nor a plain value.
        """
        leaves: dict[str, Any] = {}
        arguments: list[Argument] = []
        for name, default, value in _bound(binding):
            if default is _EMPTY and arguments and arguments[-1].default is not _EMPTY:
                default = None  # a keyword-only argument may stand behind one with a default, and code has no such mark
            arguments.append(_argument(name, default, value, leaves))
        check_names(argument.name for argument in arguments)
        return cls(model, arguments), leaves

    # A call -----------------------------------------------------------------------------------------------------------

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """A call's arguments in order.

        Raises:
            ExampleError: they are not those of the forward, or have another form than the example's.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ExampleError(
                f"{self.model} does not take this call: {error}; pass the arguments of the network that was converted, "
                f"{self.signature}"
            ) from None
        bound.apply_defaults()
        values = tuple(bound.arguments.values())
        self(*values)
        return values

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a call by the names that the captured graph has for them.

        Raises:
            ExampleError: as :meth:`values` does.
        """
        tensors: dict[str, torch.Tensor] = {}
        for argument, value in zip(self.arguments, self.values(args, kwargs), strict=True):
            tensors.update(_read(argument.form, value))
        return tensors

    @property
    def tensor_names(self) -> list[str]:
        """The names that the captured graph has for the tensors of a call, in order."""
        return [name for argument in self.arguments for name in _names(argument.form)]

    def tensors_of(self, inputs: Any) -> dict[str, torch.Tensor]:
        """The same of inputs as one value: a tensor, a tuple of positional or a dict of keyword arguments.

        What is none of these, such as a dict whose keys are no arguments, is taken as the one argument.
        """
        return self.tensors(*self.as_arguments(inputs))

    def as_arguments(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments of a call with such inputs."""
        args, kwargs = as_call(inputs)
        if not binds(self.signature, args, kwargs) and binds(self.signature, (inputs,), {}) and self.fits(inputs):
            args, kwargs = (inputs,), {}
        return args, kwargs

    @property
    def takes_mapping(self) -> bool:
        """Whether the first argument is a dict of inputs."""
        form = self.arguments[0].form
        return isinstance(form, _Nest) and not any(step.is_attribute for step, _ in form.items)

    def fits(self, first: Any) -> bool:
        """Whether a value has the form of the first argument."""
        return self.arguments[0].fault(first) is None

    def __call__(self, *values: Any) -> None:
        """Refuse arguments of another form than those that the network was captured with.

        Raises:
            ExampleError: they are.
        """
        for argument, value in zip(self.arguments, values, strict=True):
            fault = argument.fault(value)
            if fault is not None:
                raise ExampleError(fault)

    # A graph ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def of_graph(graph: fx.Graph) -> CallSignature:
        """That of a graph which :meth:`write` began."""
        call = next(iter(graph.nodes)).meta["call"]
        assert isinstance(call, CallSignature)
        return call

    @staticmethod
    def tensor_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
        """The tensors of a graph that :meth:`write` began, by the names that the captured graph has for them."""
        return {node.meta["leaf"]: node for node in graph.nodes if "leaf" in node.meta}

    @staticmethod
    def begins(node: fx.Node) -> bool:
        """Whether a node of a graph is one that :meth:`write` wrote."""
        return "call" in node.meta

    def write(self, graph: fx.Graph) -> dict[str, fx.Node]:
        """Begin a graph: placeholders for the arguments, a check, and the reading of the tensors.

        The check is left out where there is one argument, a tensor.

        Returns:
            The nodes of the tensors by the names that the captured graph has for them.
        """
        placeholders = []
        for argument in self.arguments:
            default = {} if argument.default is _EMPTY else {"default_value": argument.default}
            placeholders.append(graph.placeholder(argument.name, **default))
        written = [*placeholders]
        if len(self.arguments) > 1 or not isinstance(self.arguments[0].form, _Tensor):
            written.append(graph.call_function(self, tuple(placeholders)))
        nodes: dict[str, fx.Node] = {}
        for argument, placeholder in zip(self.arguments, placeholders, strict=True):
            written += _write_reads(graph, argument.form, placeholder, argument.name, nodes)
        for node in written:
            node.meta["call"] = self
        for name, node in nodes.items():
            node.meta["leaf"] = name
        return nodes


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, of a tensor, a tuple or a dict.

    Raises:
        ExampleError: the inputs are of no kind that holds tensors.
    """
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        return (), dict(inputs)
    if isinstance(inputs, list | tuple):
        return tuple(inputs), {}
    if isinstance(inputs, torch.Tensor) or items_of(inputs) is not None:
        return (inputs,), {}
    raise ExampleError(
        f"example_inputs is a {type(inputs).__name__}; pass a tensor, a tuple of positional arguments or a dict of "
        "keyword arguments"
    )


def binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call has the arguments of a signature."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


# The example ----------------------------------------------------------------------------------------------------------


def _bound(binding: inspect.BoundArguments) -> Iterator[tuple[str, Any, Any]]:
    """Each argument's name, default and value in the example, ``_EMPTY`` for none; items of ``*args`` singly."""
    for parameter in binding.signature.parameters.values():
        value = binding.arguments.get(parameter.name, _EMPTY)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            for i, item in enumerate(() if value is _EMPTY else value):
                yield f"{parameter.name}_{i}", _EMPTY, item
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            yield from ((name, _EMPTY, item) for name, item in ({} if value is _EMPTY else value).items())
        else:
            yield parameter.name, parameter.default, value


def _argument(name: str, default: Any, value: Any, leaves: dict[str, Any]) -> Argument:
    is_absent = value is _EMPTY
    form: _Form = _Plain(default) if is_absent else _form(name, value, leaves)
    return Argument(name, form, default if default is _EMPTY or _is_literal(default) else None, is_absent)


_PLAIN = (torch.Tensor, str, int, float, bool, complex, torch.dtype, torch.device)


def _form(path: str, value: Any, leaves: dict[str, Any]) -> _Form:
    items = items_of(value)
    if items is not None:
        if faults := [step.key for step, _ in items if not _is_literal(step.key) and not isinstance(step.key, Enum)]:
            raise ExampleError(
                f"an example input is a {type(value).__name__} with the key {faults[0]!r}, which no code can show; "
                "use texts or numbers as keys"
            )
        forms = tuple((step, _form(f"{path}_{step.key}", item, leaves)) for step, item in items)
        return _Nest(type(value).__name__, forms)
    if value is not None and not isinstance(value, _PLAIN):
        raise ExampleError(
            f"an example input is a {type(value).__name__}; only tensors and plain values can be inputs, in containers "
            "or not: wrap the model in a module whose forward takes the tensors one by one"
        )
    name = re.sub(r"\W", "_", path)
    while name in leaves:
        name += "_"
    leaves[name] = value
    return _Tensor(name) if isinstance(value, torch.Tensor) else _Plain(value)


def _is_literal(value: Any) -> bool:
    """Whether printed code can show a value."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


# The forms ------------------------------------------------------------------------------------------------------------


def _read(form: _Form, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(form, _Tensor):
        yield form.name, value
    elif isinstance(form, _Nest):
        for step, item in form.items:
            yield from _read(item, step.read(value))


def _names(form: _Form) -> Iterator[str]:
    if isinstance(form, _Tensor):
        yield form.name
    elif isinstance(form, _Nest):
        for _, item in form.items:
            yield from _names(item)


def _write_reads(graph: fx.Graph, form: _Form, node: fx.Node, path: str, nodes: dict[str, fx.Node]) -> list[fx.Node]:
    """Read the tensors within a value, a call for each step; all of the calls."""
    written: list[fx.Node] = []
    if isinstance(form, _Tensor):
        nodes[form.name] = node
    elif isinstance(form, _Nest):
        for step, item in form.items:
            if next(_names(item), None) is None:
                continue
            read = getattr if step.is_attribute else operator.getitem
            name = re.sub(r"\W", "_", f"{path}_{step.key}")
            child = graph.create_node("call_function", read, (node, step.key), name=name)
            written += [child, *_write_reads(graph, item, child, name, nodes)]
    return written


def _fault(form: _Form, value: Any, path: str, argument: Argument) -> str | None:
    """What is wrong with a value at a place within an argument."""
    if isinstance(form, _Tensor):
        return None if isinstance(value, torch.Tensor) else _misfit(form, value, path, argument)
    if isinstance(form, _Plain):
        return None if _equal(form.value, value) else _misfit(form, value, path, argument)
    if not _has_steps(form, value):
        return _misfit(form, value, path, argument)
    for step, item in form.items:
        fault = _fault(item, step.read(value), f"{path}{step}", argument)
        if fault is not None:
            return fault
    return None


def _has_steps(form: _Nest, value: Any) -> bool:
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
    if isinstance(form, _Plain) and not isinstance(value, torch.Tensor):
        return (
            f"the input {place} is {what}, and the network was captured with {form}, which is fixed in it; "
            "pass that value, or convert again with another one in example_inputs"
        )
    return (
        f"the input {place} is {what}, and the network was captured with {form}, which is fixed in it; "
        f"pass {form} there, or convert again with {what} in example_inputs"
    )
