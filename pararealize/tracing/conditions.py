"""A recorded graph, its guards -> CallConditions: what a call's arguments have to be for the recording to be right.

Guards speak of sizes. An input that is no tensor has the value that it was recorded with besides, and an input of
integers or truth values its element type: a model may do something else with bytes than with numbers of 64 bits. Among
floating-point types a recording holds for all that no guard excludes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pararealize.errors import ExampleError, GuardError

from .guards import Guards, guards_hold
from .operations import as_captured

__all__ = ["CallConditions"]


class _Required:
    """Stands for the default value of an input that has none."""

    def __repr__(self) -> str:
        return "required"


_REQUIRED = _Required()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallConditions:
    """What the arguments of a call have to be.

    Attributes:
        defaults: the inputs' default values, in the order of the signature.
        fixed: the values of inputs that are no tensors.
        dtypes: the element types of inputs that are tensors.
        guards: conditions on sizes.
        texts: these as they print.

    Example:
        >>> from pararealize import capture
        >>> captured = capture(torch.nn.Linear(4, 4), torch.randn(2, 4))
        >>> conditions = CallConditions.of(captured.graph, captured.guards)
        >>> conditions.hold({"input": torch.randn(3, 4)}), conditions.hold({"input": torch.randn(4)})
        (True, False)
    """

    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    dtypes: Mapping[str, torch.dtype]
    guards: Guards
    texts: tuple[str, ...]

    @classmethod
    def of(cls, graph: fx.Graph, guards: Guards) -> CallConditions:
        """The conditions of a graph that is called with a network's inputs.

        Args:
            graph: it has the inputs as placeholders, and checks those that are no tensors.
            guards: of the recording that it was made from.
        """
        placeholders = graph.find_nodes(op="placeholder")
        checks = [node for node in graph.nodes if node.op == "call_function" and node.target is as_captured]
        return cls(
            defaults={str(node.target): node.args[0] if node.args else _REQUIRED for node in placeholders},
            fixed={str(node.args[2]): node.args[1] for node in checks},
            dtypes={each.name: each.dtype for each in guards.inputs if each.dtype is not None},
            guards=guards,
            texts=tuple(map(str, guards)),
        )

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The inputs by name; ``None`` where the arguments do not fit the signature."""
        names = tuple(self.defaults)
        given = dict(zip(names, args, strict=False))
        if len(args) > len(names) or any(name in given or name not in self.defaults for name in kwargs):
            return None
        values = {**self.defaults, **given, **kwargs}
        return None if any(value is _REQUIRED for value in values.values()) else values

    def hold(self, values: Mapping[str, Any]) -> bool:
        """Whether the recording is right for inputs, by name."""
        for name, captured in self.fixed.items():
            if not _is_same(values.get(name), captured):
                return False
        for name, dtype in self.dtypes.items():
            value = values.get(name)
            if not isinstance(value, torch.Tensor) or not _is_like(value.dtype, dtype):
                return False
        guards = self.guards
        return guards_hold(guards.names, self.texts, [values.get(name) for name in guards.names])

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse inputs, by name, for which the recording is not right.

        Raises:
            GuardError: sizes or numbers of dimensions are not within the guards.
            ExampleError: an input has another value or another kind of element type than was recorded.
        """
        self.guards.check(values)
        for name, captured in self.fixed.items():
            if not _is_same(value := values.get(name), captured):
                raise ExampleError(
                    f"the input {name!r} is {_described(value)}, and the network was recorded with {captured!r}; pass "
                    "that value, or convert again with another one in example_inputs"
                )
        for name, dtype in self.dtypes.items():
            value = values.get(name)
            if not isinstance(value, torch.Tensor) or not _is_like(value.dtype, dtype):
                raise GuardError(
                    f"the input {name!r} is {_described(value)}, and the network was recorded with a tensor of "
                    f"{str(dtype).removeprefix('torch.')}; pass such a one, or convert again with another example",
                    (f"{name}.dtype == {dtype}",),
                )


def _is_same(value: Any, captured: Any) -> bool:
    return not isinstance(value, torch.Tensor) and (value is captured or bool(value == captured))


def _is_like(dtype: torch.dtype, recorded: torch.dtype) -> bool:
    """Whether what holds for one element type holds for the other."""
    return dtype == recorded or (dtype.is_floating_point and recorded.is_floating_point)


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return repr(value)
