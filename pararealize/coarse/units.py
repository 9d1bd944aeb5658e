"""Two spaces -> the units of a coarse block: pre-activation residual units, and linear maps.

A unit is ``r ↦ P r + f(r)``: the skip P is the identity, or a strided 1×1 convolution where the shape changes, and f
normalises and rectifies before it convolves (He et al., "Identity Mappings in Deep Residual Networks"), so a residual
of any size passes along P and is corrected by something of the size of one.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize.analysis.causality import Sides
from pararealize.analysis.space import Space

from .halving import halved
from .one_sided import Ends, Halving, Pad, Subsample, by_axis, crops, kernel_extent, path, shifted, shifts
from .resampling import CONVOLUTIONS, Move, Resample, route

__all__ = [
    "CoarseBlock",
    "DepthwiseUnit",
    "PaperUnit",
    "Projection",
    "convolution",
    "depthwise_units",
    "in_type_of_weights",
    "linear_map",
    "paper_units",
]

NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

NamedModules = list[tuple[str, nn.Module]]


class PaperUnit(nn.Module):
    """The coarse unit of Lee, Lee and Park: two full 3×3 convolutions and a skip connection.

    ``r ↦ P r + W_2 relu(norm(W_1 relu(norm(r))))`` on ``(batch, channels, *extent)``, one to three axes; W_1 has
    stride 2, and P is a strided 1×1 convolution, where the extent halves. Parameters for c → d channels on images:
    ``9cd + 9d² + 2c + 2d``, and ``cd`` for P.
    """

    def __init__(self, before: int, after: int, halving: Halving, *, dtype: torch.dtype, sides: Sides = ()) -> None:
        super().__init__()
        axes = len(halving)
        self.norm1 = NORMS[axes](before, dtype=dtype)
        self.conv1 = convolution(before, after, 3, halving, sides, dtype=dtype)
        self.norm2 = NORMS[axes](after, dtype=dtype)
        self.conv2 = convolution(after, after, 3, (None,) * axes, sides, dtype=dtype)
        self.skip = _skip(before, after, halving, sides, dtype)

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, before, *extent) -> (batch, after, *halved extent)``."""
        f = self.conv1(functional.relu(self.norm1(r)))
        f = self.conv2(functional.relu(self.norm2(f)))
        return self.skip(r) + f  # type: ignore[no-any-return]


class DepthwiseUnit(nn.Module):
    """A paper unit whose first convolution is separable, with a large kernel, and whose second is 1×1.

    ``r ↦ P r + W_2 relu(norm(D W_1 relu(norm(r))))``, D depthwise k×k. It sees k pixels at ``cd + d² + k²d`` weights
    on images, where a paper unit sees 5 to 7 at ``9cd + 9d²``.
    """

    def __init__(
        self, before: int, after: int, halving: Halving, *, kernel: int, dtype: torch.dtype, sides: Sides = ()
    ) -> None:
        super().__init__()
        axes = len(halving)
        still: Halving = (None,) * axes
        self.norm1 = NORMS[axes](before, dtype=dtype)
        self.conv1 = convolution(before, after, 1, still, (), dtype=dtype)
        self.depthwise = convolution(after, after, kernel, halving, sides, dtype=dtype, groups=after, gain="linear")
        self.norm2 = NORMS[axes](after, dtype=dtype)
        self.conv2 = convolution(after, after, 1, still, (), dtype=dtype)
        self.skip = _skip(before, after, halving, sides, dtype)

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, before, *extent) -> (batch, after, *halved extent)``."""
        f = self.depthwise(self.conv1(functional.relu(self.norm1(r))))
        f = self.conv2(functional.relu(self.norm2(f)))
        return self.skip(r) + f  # type: ignore[no-any-return]


class Projection(nn.Module):
    """A strided 1×1 convolution without bias that reads the centres of the kernels of some halvings.

    ``paths`` gives the paddings of the halvings, per axis, as :func:`~pararealize.coarse.halving.halvings` does: a
    kernel of padding 1 has its first centre at 0, one of padding 0 at 1, so a few pixels at both ends go first. Along
    an axis that is read on one side alone every kernel begins, or ends, at its own position: the pixels go at the end.
    """

    def __init__(
        self, before: int, after: int, paths: Sequence[Sequence[int]], *, dtype: torch.dtype, sides: Sides = ()
    ) -> None:
        super().__init__()
        rows = zip(paths, by_axis(sides, len(paths)), strict=True)
        self.ends = tuple(_centres(path) if side is None else crops(path) for path, side in rows)
        stride = tuple(2 ** len(path) for path in paths)
        self.subsample = Subsample(stride) if max(stride) > 1 else None
        self.conv = CONVOLUTIONS[len(paths)](before, after, 1, bias=False, dtype=dtype)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="linear")

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, before, *extent) -> (batch, after, *halved extent)``."""
        if any(map(any, self.ends)):
            r = functional.pad(r, [count for ends in reversed(self.ends) for count in ends])
        return self.conv(r if self.subsample is None else self.subsample(r))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The crop, where there is one."""
        return f"crop={tuple(-front for front, _ in self.ends)}" if any(map(any, self.ends)) else ""


class CoarseBlock(nn.Sequential):
    """``F^j``: units in order, between two moves of the axes where channels do not stand first."""

    def __init__(self, x: Space, y: Space, modules: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        if x.channel:
            self.add_module("move", Move(x.channel, 0))
        for name, module in modules:
            self.add_module(name, module)
        if y.channel:
            self.add_module("move_back", Move(0, y.channel))
        self.spaces = f"{x} → {y}"
        self.keeps_type = x.dtype == y.dtype

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, *x.shape) -> (batch, *y.shape)``."""
        return in_type_of_weights(super().forward, r, self.parameters(), keep=self.keeps_type)

    def extra_repr(self) -> str:
        """The spaces, printed before the units."""
        return self.spaces


def in_type_of_weights(
    function: Callable[[Tensor], Tensor], r: Tensor, weights: Iterable[Tensor], *, keep: bool = True
) -> Tensor:
    """``function(r)``, computed in the type of its weights, and in that of r again where it is to be kept.

    A model that casts within its forward (autocast) gives activations of that type whatever its weights are cast to.
    """
    dtype = next((weight.dtype for weight in weights), r.dtype)
    if dtype == r.dtype:
        return function(r)
    result = function(r.to(dtype))
    return result.to(r.dtype) if keep else result


def paper_units(x: Space, y: Space, units: int, sides: Sides = ()) -> NamedModules:
    """So many paper units, the first ones at stride 2 where the extent halves, and what resampling is left."""
    return _chain(x, y, units, PaperUnit, sides)


def depthwise_units(x: Space, y: Space, units: int, kernel: int, sides: Sides = ()) -> NamedModules:
    """So many depthwise units, as :func:`paper_units` places them."""
    return _chain(x, y, units, partial(DepthwiseUnit, kernel=kernel), sides)


def linear_map(x: Space, y: Space, sides: Sides = ()) -> nn.Module:
    """The cheapest linear map: the identity, a strided 1×1 convolution, or averages and a linear layer; no bias."""
    shift = _shift_of(sides)
    if x.shape == y.shape and x.channel == y.channel:
        return CoarseBlock(x, y, shift) if shift else nn.Identity()
    dtype = y.torch_dtype
    if len(x.extent) == len(y.extent) and 1 <= len(x.extent) <= 3 and not len(x.extent) == x.channel == y.channel == 1:
        paths, extent = _paths(x, y, sides)
        projection = Projection(x.channels, y.channels, paths, dtype=dtype, sides=sides)
        modules: NamedModules = [*shift, ("project", projection)]
        if extent != y.extent:
            modules.append(("resample", Resample(extent, y.extent)))
        return CoarseBlock(x, y, modules)
    block = nn.Sequential()
    for step in route(x, y, linear=True, sides=sides):
        block.add_module(step.name, step.make())
    nn.init.kaiming_normal_(block.get_parameter("project.weight"), nonlinearity="linear")
    return block


def _shift_of(sides: Sides) -> NamedModules:
    """The shift in front of a coarse block, where one is needed."""
    ends = shifts(sides)
    return [("shift", Pad(ends))] if any(map(any, ends)) else []


def _chain(x: Space, y: Space, units: int, make: Callable[..., nn.Module], sides: Sides) -> NamedModules:
    """Units with the halvings first; resampling after those where it shrinks the map, at the end where it enlarges."""
    paths, extent = _paths(x, y, sides)
    steps = max(map(len, paths))
    modules: NamedModules = []
    for i in range(max(units, steps, 1)):
        halving = tuple(path[i] if i < len(path) else None for path in paths)
        before = y.channels if i else x.channels
        modules.append((f"unit{i + 1}", make(before, y.channels, halving, dtype=y.torch_dtype, sides=sides)))
    if extent != y.extent:
        shrinks = all(after <= before for before, after in zip(extent, y.extent, strict=True))
        place = max(steps, 1) if shrinks else len(modules)
        modules.insert(place, ("resample", Resample(extent, y.extent)))
    return [*_shift_of(sides), *modules]


def _paths(x: Space, y: Space, sides: Sides) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The halvings of each axis, and the extent where they end."""
    extent = shifted(x.extent, sides)
    paths = [path(*row) for row in zip(extent, y.extent, by_axis(sides, len(extent)), strict=True)]
    return paths, tuple(reduce(halved, path, size) for size, path in zip(extent, paths, strict=True))


def _centres(path: Sequence[int]) -> Ends:
    """What is cut off at both ends of an axis so that a kernel's first centre is the first position."""
    crop = sum((1 - padding) << i for i, padding in enumerate(path))
    return -crop, -crop


def convolution(
    before: int,
    after: int,
    kernel: int,
    halving: Halving,
    sides: Sides,
    *,
    dtype: torch.dtype,
    groups: int = 1,
    gain: str = "relu",
) -> nn.Module:
    """A convolution without bias that keeps the extent, or halves it as a 3-wide kernel of that padding does.

    Along axes that are read on one side alone, it is padded on that side, by a module in front of it. Without a gain,
    the weight is as torch draws it.
    """
    axes = len(halving)
    windows = [kernel_extent(kernel, half, side) for half, side in zip(halving, by_axis(sides, axes), strict=True)]
    stride = tuple(1 if padding is None else 2 for padding in halving)
    pointwise = all(window.kernel == 1 for window in windows) and max(stride) > 1
    module: nn.Module = CONVOLUTIONS[axes](
        before,
        after,
        tuple(w.kernel for w in windows),
        stride=1 if pointwise else stride,
        padding=tuple(w.padding for w in windows),
        groups=groups,
        bias=False,
        dtype=dtype,
    )
    if gain:
        nn.init.kaiming_normal_(module.get_parameter("weight"), nonlinearity=gain)  # type: ignore[arg-type]
    ends = [w.ends for w in windows]
    parts: dict[str, nn.Module] = {"pad": Pad(ends)} if any(map(any, ends)) else {}
    if pointwise:
        parts["subsample"] = Subsample(stride)
    return nn.Sequential(OrderedDict(parts, conv=module)) if parts else module


def _skip(before: int, after: int, halving: Halving, sides: Sides, dtype: torch.dtype) -> nn.Module:
    if before == after and all(padding is None for padding in halving):
        return nn.Identity()
    paths = [() if padding is None else (padding,) for padding in halving]
    return Projection(before, after, paths, dtype=dtype, sides=sides)
