"""A recording's signature and guards -> CallConditions: what a call's arguments have to be for it to be right.

The signature says where tensors stand among the arguments, and what stands beside them. Guards speak of the tensors'
sizes. A tensor of integers or truth values has the element type that it was recorded with, since a model may do
something else with bytes than with numbers of 64 bits; of floating-point types, a recording holds for all that no guard
excludes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from pararealize.errors import ExampleError, GuardError

from .call_signature import CallSignature
from .guards import Guards, guards_hold

__all__ = ["CallConditions", "SizeCheck", "no_fault"]

SizeCheck: TypeAlias = Callable[[Mapping[str, torch.Tensor]], str]


def no_fault(_tensors: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with tensors of which nothing more is asked."""
    return ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CallConditions:
    """What the arguments of a call have to be.

    Attributes:
        call: how the network is called.
        guards: conditions on the tensors' sizes.
        texts: these as they print.
        dtypes: the element types that the tensors were recorded with, by name.
        fault: a further condition on the tensors, by name: what is wrong with them, empty where nothing is. It is
            left out where torch.compile looks on.
        read_tensors: a function of the arguments that gives the tensors in order; it is what torch.compile can follow.

    Example:
        >>> from pararealize import capture
        >>> captured = capture(torch.nn.Linear(4, 4), torch.randn(2, 4))
        >>> conditions = CallConditions.of(captured.example.call, captured.guards)
        >>> conditions.hold((torch.randn(3, 4),), {}), conditions.hold((torch.randn(4),), {})
        (True, False)
    """

    call: CallSignature
    guards: Guards
    texts: tuple[str, ...]
    dtypes: Mapping[str, torch.dtype]
    fault: SizeCheck
    read_tensors: Callable[..., Any]

    @classmethod
    def of(cls, call: CallSignature, guards: Guards, fault: SizeCheck = no_fault) -> CallConditions:
        """The conditions of a recording with this signature and these guards, and a further one."""
        graph = fx.Graph()
        graph.output(tuple(call.write(graph).values()))
        return cls(
            call=call,
            guards=guards,
            texts=tuple(map(str, guards)),
            fault=fault,
            dtypes={each.name: each.dtype for each in guards.inputs if each.dtype is not None},
            read_tensors=fx.GraphModule(nn.Module(), graph).forward,
        )

    def hold(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the recording is right for a call."""
        if torch.compiler.is_compiling():
            tensors = dict(zip(self.dtypes, self.read_tensors(*args, **kwargs), strict=False))
        else:
            try:
                tensors = self.call.tensors(args, kwargs)
            except ExampleError:
                return False
        for name, dtype in self.dtypes.items():
            if not _is_like(tensors[name].dtype, dtype):
                return False
        guards = self.guards
        if not guards_hold(guards.names, self.texts, [tensors.get(name) for name in guards.names]):
            return False
        return torch.compiler.is_compiling() or not self.fault(tensors)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a call by name, where the recording is right for it.

        Raises:
            GuardError: sizes, numbers of dimensions or kinds of element types are others than were recorded.
            ExampleError: the arguments are not those of the signature, or have another form than the example's.
        """
        tensors = self.call.tensors(args, kwargs)
        self.check_tensors(tensors)
        return tensors

    def check_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse a call with these tensors, by name, where the recording is not right for it.

        Raises:
            GuardError: it is not.
        """
        self.guards.check(tensors)
        for name, dtype in self.dtypes.items():
            if not _is_like(tensors[name].dtype, dtype):
                raise GuardError(
                    f"the network was recorded for {name} of {_text(dtype)}, and was given one of "
                    f"{_text(tensors[name].dtype)}; pass {name}.to({dtype}), or convert again with another example",
                    (f"{name}.dtype == {dtype}",),
                )
        if fault := self.fault(tensors):
            sizes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise GuardError(
                f"at the sizes of {sizes}, {fault}; pass inputs of other sizes, or convert again with these"
            )


def _is_like(dtype: torch.dtype, recorded: torch.dtype) -> bool:
    """Whether what holds for one element type holds for the other."""
    return dtype == recorded or (dtype.is_floating_point and recorded.is_floating_point)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
