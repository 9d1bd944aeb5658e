"""A value that is to be sent -> its format: what the receiving rank has to allocate, and how tensors are nested in it.

A value is a tensor, or tensors and plain objects nested in the containers of :mod:`pararealize.tracing.containers`. Its
format is the same nest with a number in each leaf's place, and for each number a tensor's format or the plain object:
small, and fit to be sent as an object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pararealize.tracing.containers import map_leaves

__all__ = ["TensorFormat", "ValueFormat", "in_memory_order", "is_integral", "sending_fault"]


@dataclasses.dataclass(frozen=True, slots=True)
class TensorFormat:
    """One tensor's shape, strides and element type."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorFormat:
        """That of a tensor; of one whose elements do not fill its memory, that of a dense copy."""
        return cls(tuple(tensor.shape), torch.empty_like(tensor, device="meta").stride(), tensor.dtype)

    @property
    def differentiable(self) -> bool:
        """Whether such a tensor can have a gradient."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    def empty(self, device: torch.device) -> torch.Tensor:
        """Memory for one."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)

    def packed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in this format: itself where it has it already."""
        if tensor.stride() == self.stride and tensor.dtype == self.dtype:
            return tensor
        return self.empty(tensor.device).copy_(tensor)

    def __str__(self) -> str:
        return f"{self.shape} {str(self.dtype).removeprefix('torch.')}"


@dataclasses.dataclass(frozen=True, slots=True)
class ValueFormat:
    """A value without the contents of its tensors.

    Attributes:
        leaves: for each leaf of the nest its format where it is a tensor, or the object itself, wrapped.
        nesting: the nest, with the number of a leaf in its place.
    """

    leaves: tuple[TensorFormat | PlainObject, ...]
    nesting: Any

    @classmethod
    def of(cls, value: Any) -> ValueFormat:
        """That of a value."""
        leaves: list[TensorFormat | PlainObject] = []

        def numbered(leaf: Any) -> int:
            leaves.append(TensorFormat.of(leaf) if isinstance(leaf, torch.Tensor) else PlainObject(leaf))
            return len(leaves) - 1

        nesting = map_leaves(numbered, value)
        return cls(tuple(leaves), nesting)

    @property
    def tensors(self) -> list[TensorFormat]:
        """The formats of its tensors, in the order in which they are sent."""
        return [leaf for leaf in self.leaves if isinstance(leaf, TensorFormat)]

    @property
    def gradients(self) -> list[TensorFormat]:
        """The formats of those tensors that can have gradients, in the order in which these are sent."""
        return [leaf for leaf in self.tensors if leaf.differentiable]

    def filled(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The value with these tensors."""
        rest = iter(tensors)
        leaves = [leaf.value if isinstance(leaf, PlainObject) else next(rest) for leaf in self.leaves]
        return map_leaves(leaves.__getitem__, self.nesting)


@dataclasses.dataclass(frozen=True, slots=True)
class PlainObject:
    """A leaf that is no tensor, wrapped: it is told from a tensor's format whatever it is."""

    value: Any


def is_integral(value: Any) -> bool:
    """Whether a value is a tensor of whole numbers, such as tokens, which may lie outside of a table."""
    return isinstance(value, torch.Tensor) and not (
        value.is_floating_point() or value.is_complex() or value.dtype is torch.bool
    )


def sending_fault(tensors: Mapping[str, torch.Tensor]) -> str:
    """Why some of these tensors, by name, cannot be sent; empty where all can."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            return f"{name} is on the meta device, without values, which cannot be sent; pass a tensor with values"
        if tensor.is_quantized or tensor.is_nested or tensor.layout is not torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            what = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else f"a {layout} tensor"
            return f"{name} is {what}, which cannot be sent to other ranks; pass a dense tensor of floats or integers"
    return ""


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in the order of memory, as one dense axis: process groups refuse anything but contiguous tensors."""
    return tensor.as_strided((tensor.numel(),), (1,))
