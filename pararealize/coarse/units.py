"""Two spaces -> the units of a coarse block: pre-activation residual units, and linear maps.

A unit is ``r ↦ P r + f(r)``: the skip P is the identity, or a strided 1×1 convolution where the shape changes, and f
normalises and rectifies before it convolves (He et al., "Identity Mappings in Deep Residual Networks"), so a residual
of any size passes along P and is corrected by something of the size of one.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize.analysis.space import Space

from .resampling import CONVOLUTIONS, Move, Resample, halved, halvings, route

__all__ = ["CoarseBlock", "DepthwiseUnit", "PaperUnit", "Projection", "depthwise_units", "linear_map", "paper_units"]

NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

Halving = tuple[int | None, ...]  # per axis: None at stride 1, else the padding of a 3-wide kernel of stride 2
NamedModules = list[tuple[str, nn.Module]]


class PaperUnit(nn.Module):
    """The coarse unit of Lee, Lee and Park: two full 3×3 convolutions and a skip connection.

    ``r ↦ P r + W_2 relu(norm(W_1 relu(norm(r))))`` on ``(batch, channels, *extent)``, one to three axes; W_1 has
    stride 2, and P is a strided 1×1 convolution, where the extent halves. Parameters for c → d channels on images:
    ``9cd + 9d² + 2c + 2d``, and ``cd`` for P.
    """

    def __init__(self, before: int, after: int, halving: Halving, *, dtype: torch.dtype) -> None:
        super().__init__()
        axes = len(halving)
        self.norm1 = NORMS[axes](before, dtype=dtype)
        self.conv1 = _convolution(before, after, 3, halving, dtype=dtype)
        self.norm2 = NORMS[axes](after, dtype=dtype)
        self.conv2 = _convolution(after, after, 3, (None,) * axes, dtype=dtype)
        self.skip = _skip(before, after, halving, dtype)

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

    def __init__(self, before: int, after: int, halving: Halving, *, kernel: int, dtype: torch.dtype) -> None:
        super().__init__()
        axes = len(halving)
        still: Halving = (None,) * axes
        self.norm1 = NORMS[axes](before, dtype=dtype)
        self.conv1 = _convolution(before, after, 1, still, dtype=dtype)
        self.depthwise = _convolution(after, after, kernel, halving, dtype=dtype, groups=after, gain="linear")
        self.norm2 = NORMS[axes](after, dtype=dtype)
        self.conv2 = _convolution(after, after, 1, still, dtype=dtype)
        self.skip = _skip(before, after, halving, dtype)

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, before, *extent) -> (batch, after, *halved extent)``."""
        f = self.depthwise(self.conv1(functional.relu(self.norm1(r))))
        f = self.conv2(functional.relu(self.norm2(f)))
        return self.skip(r) + f  # type: ignore[no-any-return]


class Projection(nn.Module):
    """A strided 1×1 convolution without bias that reads the centres of the kernels of some halvings.

    ``paths`` gives the paddings of the halvings, per axis, as :func:`~pararealize.coarse.resampling.halvings` does: a
    kernel of padding 1 has its first centre at 0, one of padding 0 at 1, so a few pixels at both ends go first.
    """

    def __init__(self, before: int, after: int, paths: Sequence[Sequence[int]], *, dtype: torch.dtype) -> None:
        super().__init__()
        self.crop = tuple(sum((1 - padding) << i for i, padding in enumerate(path)) for path in paths)
        stride = tuple(2 ** len(path) for path in paths)
        self.conv = CONVOLUTIONS[len(paths)](before, after, 1, stride=stride, bias=False, dtype=dtype)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="linear")

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, before, *extent) -> (batch, after, *halved extent)``."""
        if any(self.crop):
            r = functional.pad(r, [-c for c in reversed(self.crop) for _ in range(2)])
        return self.conv(r)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The crop, where there is one."""
        return f"crop={self.crop}" if any(self.crop) else ""


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

    def extra_repr(self) -> str:
        """The spaces, printed before the units."""
        return self.spaces


def paper_units(x: Space, y: Space, units: int) -> NamedModules:
    """So many paper units, the first ones at stride 2 where the extent halves, and what resampling is left."""
    return _chain(x, y, units, PaperUnit)


def depthwise_units(x: Space, y: Space, units: int, kernel: int) -> NamedModules:
    """So many depthwise units, as :func:`paper_units` places them."""
    return _chain(x, y, units, partial(DepthwiseUnit, kernel=kernel))


def linear_map(x: Space, y: Space) -> nn.Module:
    """The cheapest linear map: the identity, a strided 1×1 convolution, or averages and a linear layer; no bias."""
    if x.shape == y.shape and x.channel == y.channel:
        return nn.Identity()
    dtype = y.torch_dtype
    if len(x.extent) == len(y.extent) and 1 <= len(x.extent) <= 3 and not len(x.extent) == x.channel == y.channel == 1:
        paths, extent = _paths(x, y)
        modules: NamedModules = [("project", Projection(x.channels, y.channels, paths, dtype=dtype))]
        if extent != y.extent:
            modules.append(("resample", Resample(extent, y.extent)))
        return CoarseBlock(x, y, modules)
    block = nn.Sequential()
    for step in route(x, y, linear=True):
        block.add_module(step.name, step.make())
    nn.init.kaiming_normal_(block.get_parameter("project.weight"), nonlinearity="linear")
    return block


def _chain(x: Space, y: Space, units: int, make: Callable[..., nn.Module]) -> NamedModules:
    """Units with the halvings first; resampling after those where it shrinks the map, at the end where it enlarges."""
    paths, extent = _paths(x, y)
    steps = max(map(len, paths))
    modules: NamedModules = []
    for i in range(max(units, steps, 1)):
        halving = tuple(path[i] if i < len(path) else None for path in paths)
        before = y.channels if i else x.channels
        modules.append((f"unit{i + 1}", make(before, y.channels, halving, dtype=y.torch_dtype)))
    if extent != y.extent:
        shrinks = all(after <= before for before, after in zip(extent, y.extent, strict=True))
        place = max(steps, 1) if shrinks else len(modules)
        modules.insert(place, ("resample", Resample(extent, y.extent)))
    return modules


def _paths(x: Space, y: Space) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The halvings of each axis, and the extent where they end."""
    paths = [halvings(a, b) for a, b in zip(x.extent, y.extent, strict=True)]
    return paths, tuple(reduce(halved, path, size) for size, path in zip(x.extent, paths, strict=True))


def _convolution(
    before: int, after: int, kernel: int, halving: Halving, *, dtype: torch.dtype, groups: int = 1, gain: str = "relu"
) -> nn.Module:
    """A convolution without bias that keeps the extent, or halves it as a 3-wide kernel of that padding does."""
    stride = tuple(1 if padding is None else 2 for padding in halving)
    padding = tuple(kernel // 2 - (padding == 0) for padding in halving)
    convolution: nn.Module = CONVOLUTIONS[len(halving)](
        before, after, kernel, stride=stride, padding=padding, groups=groups, bias=False, dtype=dtype
    )
    nn.init.kaiming_normal_(convolution.get_parameter("weight"), nonlinearity=gain)  # type: ignore[arg-type]
    return convolution


def _skip(before: int, after: int, halving: Halving, dtype: torch.dtype) -> nn.Module:
    if before == after and all(padding is None for padding in halving):
        return nn.Identity()
    return Projection(before, after, [() if padding is None else (padding,) for padding in halving], dtype=dtype)
