"""Two spaces in, the units of a coarse block out: pre-activation residual units, linear maps, copies of blocks.

A unit is ``r ↦ P r + f(r)``: the skip P is the identity, or a strided 1×1 convolution where the shape changes, and f
normalises and rectifies before it convolves (He et al., "Identity Mappings in Deep Residual Networks"), so a residual
of any size passes along P and is corrected by something of the size of one.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from pararealize.analysis.space import Space

from .resampling import Move, Resample, halvings, route

__all__ = [
    "CoarseBlock",
    "Copies",
    "DepthwiseUnit",
    "PaperUnit",
    "Projection",
    "depthwise_units",
    "linear_map",
    "paper_units",
    "redraw",
]

_CONVOLUTION: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

Halving = tuple[int | None, ...]  # per axis: None at stride 1, else the padding of a 3-wide window of stride 2


class PaperUnit(nn.Module):
    """The coarse unit of Lee, Lee and Park: two full 3×3 convolutions and a skip connection.

    ``r ↦ P r + W_2 relu(norm(W_1 relu(norm(r))))`` on ``(batch, channels, *extent)``, one to three axes; W_1 has
    stride 2, and P is a strided 1×1 convolution, where the extent halves. Parameters for c → d channels on images:
    ``9cd + 9d² + 2c + 2d``, and ``cd`` for P.
    """

    def __init__(self, before: int, after: int, halving: Halving, *, dtype: torch.dtype) -> None:
        super().__init__()
        axes = len(halving)
        self.norm1 = _NORM[axes](before, dtype=dtype)
        self.conv1 = _convolution(before, after, 3, halving, dtype=dtype)
        self.norm2 = _NORM[axes](after, dtype=dtype)
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
        self.norm1 = _NORM[axes](before, dtype=dtype)
        self.conv1 = _convolution(before, after, 1, still, dtype=dtype)
        self.depthwise = _convolution(after, after, kernel, halving, dtype=dtype, groups=after, gain="linear")
        self.norm2 = _NORM[axes](after, dtype=dtype)
        self.conv2 = _convolution(after, after, 1, still, dtype=dtype)
        self.skip = _skip(before, after, halving, dtype)

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, before, *extent) -> (batch, after, *halved extent)``."""
        f = self.depthwise(self.conv1(functional.relu(self.norm1(r))))
        f = self.conv2(functional.relu(self.norm2(f)))
        return self.skip(r) + f  # type: ignore[no-any-return]


class Projection(nn.Module):
    """A strided 1×1 convolution without bias that reads the centres of the windows of some halvings.

    ``paths`` gives the paddings of the halvings, per axis, as :func:`~pararealize.coarse.resampling.halvings` does: a window of
    padding 1 has its first centre at 0, one of padding 0 at 1, so a few pixels are cut off at both ends first.
    """

    def __init__(self, before: int, after: int, paths: Sequence[Sequence[int]], *, dtype: torch.dtype) -> None:
        super().__init__()
        self.crop = tuple(sum((1 - padding) << i for i, padding in enumerate(path)) for path in paths)
        stride = tuple(2 ** len(path) for path in paths)
        self.conv = _CONVOLUTION[len(paths)](before, after, 1, stride=stride, bias=False, dtype=dtype)
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


class Copies(nn.Module):
    """``F^j`` made of copies of blocks: each reads its part of the segment's context next to the value.

    ``reads[i]`` are the positions of block i's context in the segment's.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        reads: Sequence[tuple[int, ...]],
        *,
        names: Sequence[str],
        needs_context: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.reads, self.names, self.needs_context = list(reads), list(names), needs_context

    def forward(self, r: Tensor, *context: Any) -> Tensor:
        """The blocks one after the other."""
        for block, reads in zip(self.blocks, self.reads, strict=True):
            r = block(r, *(context[i] for i in reads))
        return r

    def extra_repr(self) -> str:
        """Which blocks were copied."""
        return f"copies of {', '.join(self.names)}"


def paper_units(x: Space, y: Space, units: int) -> list[tuple[str, nn.Module]]:
    """So many paper units, the first ones at stride 2 where the extent halves, and what resampling is left."""
    dtype = y.torch_dtype
    return _chain(x, y, units, lambda before, halving: PaperUnit(before, y.channels, halving, dtype=dtype))


def depthwise_units(x: Space, y: Space, units: int, kernel: int) -> list[tuple[str, nn.Module]]:
    """So many depthwise units, as :func:`paper_units` places them."""
    dtype = y.torch_dtype
    return _chain(
        x, y, units, lambda before, halving: DepthwiseUnit(before, y.channels, halving, kernel=kernel, dtype=dtype)
    )


def linear_map(x: Space, y: Space) -> nn.Module:
    """The cheapest linear map: the identity, a strided 1×1 convolution, or averages and a linear layer; no bias."""
    if x.shape == y.shape and x.channel == y.channel:
        return nn.Identity()
    dtype = y.torch_dtype
    if len(x.extent) == len(y.extent) and 1 <= len(x.extent) <= 3 and not len(x.extent) == x.channel == y.channel == 1:
        paths, extent = _paths(x, y)
        modules: list[tuple[str, nn.Module]] = [("project", Projection(x.channels, y.channels, paths, dtype=dtype))]
        if extent != y.extent:
            modules.append(("resample", Resample(extent, y.extent)))
        return CoarseBlock(x, y, modules)
    block = nn.Sequential()
    for step in route(x, y, linear=True):
        block.add_module(step.name, step.make())
    nn.init.kaiming_normal_(block.get_parameter("project.weight"), nonlinearity="linear")
    return block


def redraw(block: fx.GraphModule) -> fx.GraphModule:
    """A copy of a block with fresh weights from the current random state, on the CPU unless it is on meta; in place.

    Modules draw by their own ``reset_parameters``, what they leave alone is drawn from a normal distribution, and in
    both cases the standard deviation of a weight stays what it was, so the network's own way of scaling is kept.
    Tensors of one value (norms, zeros, layer scales at their start) keep it. Everything becomes trainable.
    """
    _prune(block)
    block.train()
    for parameter in block.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    if any(parameter.is_meta for parameter in block.parameters()):
        return block
    block.to("cpu")
    found = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    for module in block.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset) and not inspect.signature(reset).parameters:
            reset()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            _redraw_one(parameter, found[name])
    return block


def _prune(block: fx.GraphModule) -> None:
    """Drop the tensors that a container of the block owns but the block does not read."""
    called = [str(node.target) for node in block.graph.nodes if node.op == "call_module"]
    read = {str(node.target) for node in block.graph.nodes if node.op == "get_attr"}
    for path, module in block.named_modules():
        if not any(path == target or path.startswith(target + ".") for target in called):
            for tensors in (module._parameters, module._buffers):
                for name in [name for name in tensors if f"{path}.{name}".lstrip(".") not in read]:
                    del tensors[name]


def _redraw_one(parameter: Tensor, before: Tensor) -> None:
    if before.numel() == 0 or bool((before == before.flatten()[0]).all()):
        parameter.copy_(before)
    elif torch.equal(parameter, before):
        parameter.normal_(before.float().mean().item(), before.float().std().item())
    elif parameter.ndim > 1 and (spread := parameter.float().std().item()) > 0:
        parameter.mul_(before.float().std().item() / spread)


def _chain(x: Space, y: Space, units: int, make: Any) -> list[tuple[str, nn.Module]]:
    """Units with the halvings first; resampling after those where it shrinks the map, at the end where it enlarges."""
    paths, extent = _paths(x, y)
    steps = max(map(len, paths))
    modules: list[tuple[str, nn.Module]] = []
    for i in range(max(units, steps, 1)):
        halving = tuple(path[i] if i < len(path) else None for path in paths)
        modules.append((f"unit{i + 1}", make(x.channels if i == 0 else y.channels, halving)))
    if extent != y.extent:
        shrinks = all(after <= before for before, after in zip(extent, y.extent, strict=True))
        place = max(steps, 1) if shrinks else len(modules)
        modules.insert(place, ("resample", Resample(extent, y.extent)))
    return modules


def _paths(x: Space, y: Space) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The halvings of each axis, and the extent where they end."""
    paths = [halvings(a, b) for a, b in zip(x.extent, y.extent, strict=True)]
    ends = []
    for size, path in zip(x.extent, paths, strict=True):
        for padding in path:
            size = (size + 2 * padding - 3) // 2 + 1
        ends.append(size)
    return paths, tuple(ends)


def _convolution(
    before: int, after: int, kernel: int, halving: Halving, *, dtype: torch.dtype, groups: int = 1, gain: str = "relu"
) -> nn.Module:
    """A convolution without bias that keeps the extent, or halves it as a 3-wide window of that padding does."""
    stride = tuple(1 if padding is None else 2 for padding in halving)
    padding = tuple(kernel // 2 - (padding == 0) for padding in halving)
    convolution: nn.Module = _CONVOLUTION[len(halving)](
        before, after, kernel, stride=stride, padding=padding, groups=groups, bias=False, dtype=dtype
    )
    nn.init.kaiming_normal_(convolution.get_parameter("weight"), nonlinearity=gain)  # type: ignore[arg-type]
    return convolution


def _skip(before: int, after: int, halving: Halving, dtype: torch.dtype) -> nn.Module:
    if before == after and all(padding is None for padding in halving):
        return nn.Identity()
    return Projection(before, after, [() if padding is None else (padding,) for padding in halving], dtype=dtype)
