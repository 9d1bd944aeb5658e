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

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pararealize.errors import ExampleError

from .argument_form import Argument, ContainerForm, TensorForm, argument_of, read_tensors, tensor_names, write_reads
from .containers import items_of
from .input_checks import check_names

__all__ = ["Argument", "CallSignature", "as_call", "binds", "forward_call"]

_EMPTY = inspect.Parameter.empty


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
            arguments.append(argument_of(name, default, value, leaves))
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
            tensors.update(read_tensors(argument.form, value))
        return tensors

    @property
    def tensor_names(self) -> list[str]:
        """The names that the captured graph has for the tensors of a call, in order."""
        return [name for argument in self.arguments for name in tensor_names(argument.form)]

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
        return isinstance(form, ContainerForm) and not any(step.is_attribute for step, _ in form.items)

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
        if len(self.arguments) > 1 or not isinstance(self.arguments[0].form, TensorForm):
            written.append(graph.call_function(self, tuple(placeholders)))
        nodes: dict[str, fx.Node] = {}
        for argument, placeholder in zip(self.arguments, placeholders, strict=True):
            written += write_reads(graph, argument.form, placeholder, argument.name, nodes)
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


def forward_call(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """A converted network's call as one of its original, whose forward may take arguments by their places alone.

    Example:
        >>> class Model(nn.Module):
        ...     def forward(self, x, /, *others, scale=1.0): ...
        >>> forward_call(Model(), (), {"others_0": "b", "scale": 2.0, "x": "a"})
        (('a', 'b'), {'scale': 2.0})
    """
    places, named = list(args), dict(kwargs)
    for parameter in list(inspect.signature(model.forward).parameters.values())[len(args) :]:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            count = 0
            while f"{parameter.name}_{count}" in named:
                places.append(named.pop(f"{parameter.name}_{count}"))
                count += 1
        if parameter.name not in named or parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            break
        places.append(named.pop(parameter.name))
    return tuple(places), named


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
