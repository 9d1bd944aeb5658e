"""Causality of each axis -> the padding, strides and shifts with which a convolution or a pool keeps to it.

    both sides   padding on both sides        past   padding in front alone     own   kernels one wide
                 . o o o .                           . . o o o                        o o o

A module that cannot keep to it (an average over uneven parts, a change of axes) does not fit; ``misfit`` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from pararealize.analysis.causality import Causality, Sides
from pararealize.analysis.space import Space

from .halving import halved, halvings

__all__ = [
    "Ends",
    "Halving",
    "KernelExtent",
    "Pad",
    "Subsample",
    "by_axis",
    "crops",
    "kernel_extent",
    "misfit",
    "path",
    "shifted",
    "shifts",
]

Ends: TypeAlias = tuple[int, int]  # positions added in front and behind; negative ones are cut off
Halving: TypeAlias = tuple[int | None, ...]  # per axis: None at stride 1, else the padding of a 3-wide kernel, stride 2


class KernelExtent(NamedTuple):
    """A kernel along one axis: its width, padding on both sides, and what is added at each end before."""

    kernel: int
    padding: int
    ends: Ends


class Pad(nn.Module):
    """Add positions at the ends of the axes, or cut them off.

    Args:
        ends: for each axis, how many in front and behind.
        behind: dimensions behind the axes: 1 where channels stand last, otherwise 0.
        value: of what is added.
    """

    def __init__(self, ends: Sequence[Ends], *, behind: int = 0, value: float = 0.0) -> None:
        super().__init__()
        self.ends, self.behind, self.value = tuple(ends), behind, value

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, …)`` to the same with longer or shorter axes."""
        pads = [0, 0] * self.behind + [count for ends in reversed(self.ends) for count in ends]
        return functional.pad(x, pads, value=self.value)

    def extra_repr(self) -> str:
        """The positions, by axis."""
        return ", ".join(f"{before:+d} in front, {behind:+d} behind" for before, behind in self.ends)


class Subsample(nn.Module):
    """Every s-th position of each axis: what a convolution of 1-wide kernels and stride s reads.

    Strided 1×1 convolutions are written as this and one of stride 1. Their gradient in torch 2.15 writes beyond its
    memory where channels stand last and fill no vector register (oneDNN, on processors with AVX2), which ends the
    process or changes other values; 5 channels of 8×12 at stride 2 are enough.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, *extent) -> (batch, channels, *extent / strides)``, rounded up."""
        if len(self.strides) > 2:  # averages of volumes know no 16-bit types on the CPU
            every: list[Any] = [slice(None, None, stride) for stride in self.strides]
            return x[(..., *every)]
        # averages of one: a kernel each way, where slices take a copy forward and several backward
        average: Any = functional.avg_pool1d if len(self.strides) == 1 else functional.avg_pool2d
        return average(x, 1, self.strides)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The strides, by axis."""
        return f"every {'×'.join(map(str, self.strides))}"


def by_axis(sides: Sides, axes: int) -> Sides:
    """One entry for each axis: those of ``sides``, or ``None`` for all where it is empty."""
    return sides or (None,) * axes


def kernel_extent(kernel: int, halving: int | None, side: Causality | None) -> KernelExtent:
    """The kernel along one axis that keeps its size, or halves it as a 3-wide one of padding ``halving`` would."""
    if side is None:
        return KernelExtent(kernel, kernel // 2 - (halving == 0), (0, 0))
    rest = -2 if halving == 0 else 0
    if side.side == "own":
        return KernelExtent(1, 0, (0, rest))
    return KernelExtent(kernel, 0, (kernel - 1, rest) if side.side == "past" else (rest, kernel - 1))


def crops(path: Sequence[int]) -> Ends:
    """What is cut off at the end of an axis so that every ``2 ** len(path)``-th position is one of its halvings."""
    return 0, -sum((1 - padding) << i + 1 for i, padding in enumerate(path))


def path(size: int, target: int, side: Causality | None) -> tuple[int, ...]:
    """The halvings along one axis; none where they would not keep to its side."""
    steps = halvings(size, target)
    if side is None or (reduce(halved, steps, size) == target and 2 ** len(steps) == side.stride):
        return steps
    return ()


def shifts(sides: Sides) -> tuple[Ends, ...]:
    """What is to be added and cut off in front of a module, so that position o stands where o may be read."""
    return tuple((0, 0) if side is None else _shift(side) for side in sides)


def _shift(side: Causality) -> Ends:
    """A lag pushes positions back; an axis that is shortened at its beginning, or read from behind, is cut there."""
    if side.side == "future":
        return -side.offset, side.offset
    return -side.offset, min(side.offset, 0)


def shifted(extent: tuple[int, ...], sides: Sides) -> tuple[int, ...]:
    """The extent behind the shift."""
    ends = shifts(by_axis(sides, len(extent)))
    return tuple(size + before + behind for size, (before, behind) in zip(extent, ends, strict=True))


def misfit(x: Space, y: Space, sides: Sides) -> str:
    """Why no pools, convolutions and linear layers lead from x to y without reading what is not to be read."""
    if not any(sides):
        return ""
    if any(side is not None and side.side == "unclear" for side in sides):
        axes = f"needs an axis of {x} for each axis of {y}, in an order that it can keep"
        return f"{axes}: the network reads positions there one by one, or from one side"
    if len(x.extent) != len(y.extent) or len(x.extent) > 3:
        return f"keeps the order of up to three axes, {x} → {y} has others"
    for i, (size, target, side) in enumerate(zip(shifted(x.extent, sides), y.extent, sides, strict=True), 1):
        if side is not None and not _fits(size, target, side):
            return f"would average axis {i} ({size} to {target} positions), along which the network reads {side}"
    return ""


def _fits(size: int, target: int, side: Causality) -> bool:
    if size == target:
        return side.stride == 1
    if target > size:
        return side.stride == 1 and target % size == 0
    return bool(path(size, target, side)) or (side.frame and size == target * side.stride)
