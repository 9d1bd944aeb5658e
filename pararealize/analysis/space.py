"""A node of a captured graph -> the space its value lives in: shape without the batch, and where the channels are."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["Space", "space_of"]

_CHANNELS_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.TransformerEncoderLayer)
_FUNCTIONS_FIRST = {F.conv1d, F.conv2d, F.conv3d, F.batch_norm, F.group_norm, F.instance_norm, torch.conv2d}
_FUNCTIONS_LAST = {F.linear, F.layer_norm, F.rms_norm, torch.layer_norm}
_COUNTS = ("in_channels", "out_channels", "num_features", "num_channels")
_PADDING = {F.pad, torch._C._nn.pad}
_MOVING = ("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint", "T", "mT", "H", "mH")
_STEPS = 24  # operations to look at for one that decides where the channels are
_TYPES = ("float32", "bfloat16", "float16", "float64", "complex64", "complex128")  # in which weights can be drawn
_MOST_AXES = 16
_LARGEST = 2**31  # elements of an axis, and 2^16 times as many of a sample: where torch stops counting is further away


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """X_j, the space of an interface, without the batch dimension.

    Attributes:
        shape: (channels, height, width) for an image, (height, width, channels) for a channels-last map, (tokens,
            channels) for a sequence, (channels,) for a vector.
        channel: the axis of ``shape`` that holds the channels.
        dtype: the name of the element type, such as ``"float32"``.

    Example:
        >>> image = Space(shape=(64, 32, 32), channel=0, dtype="float32")
        >>> print(image, image.channels, image.extent)
        64×32×32 64 (32, 32)
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # of a plan's text, in which unknown keys are faults

    shape: tuple[int, ...]
    channel: int
    dtype: str = "float32"

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.shape[self.channel] if self.shape else 1

    @property
    def extent(self) -> tuple[int, ...]:
        """The spatial sizes, or the number of tokens; empty for a vector."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.channel)

    @property
    def numel(self) -> int:
        """Elements of one sample."""
        return math.prod(self.shape)

    @property
    def channels_last(self) -> bool:
        """Whether the channels stand behind the spatial axes."""
        return len(self.shape) > 1 and self.channel == len(self.shape) - 1

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def fault(self) -> str:
        """What cannot be, in a space that comes out of a file; empty where it can.

        Example:
            >>> Space(shape=(3, 0), channel=2, dtype="string").fault
            "axis 1 has 0 positions, channels are on axis 2 of 2, and 'string' is no type of an activation"
        """
        faults = [
            f"axis {axis} has {size} positions"
            for axis, size in enumerate(self.shape[:_MOST_AXES])
            if not 1 <= size <= _LARGEST
        ]
        if len(self.shape) > _MOST_AXES:
            faults.append(f"there are {len(self.shape)} axes")
        elif not faults and self.numel > _LARGEST << 16:
            faults.append(f"a sample has {self.numel} values")
        if not 0 <= self.channel < max(len(self.shape), 1):
            faults.append(f"channels are on axis {self.channel} of {len(self.shape)}")
        if self.dtype not in _TYPES:
            faults.append(f"{self.dtype[:60]!r} is no type of an activation")
        return " and ".join([", ".join(faults[:-1]) + ",", faults[-1]] if len(faults) > 2 else faults)

    @property
    def description(self) -> str:
        """All of it in words: ``64×32×32 (channels on axis 0, float32)``."""
        return f"{self} (channels on axis {self.channel}, {self.dtype})"

    def __str__(self) -> str:
        return "×".join(str(size) for size in self.shape) or "scalar"


def space_of(node: fx.Node, module_of: Callable[[str], nn.Module]) -> Space:
    """The space of a node's value; the operations around it decide which axis holds the channels.

    Args:
        node: a node whose ``meta["val"]`` is a tensor with a leading batch dimension.
        module_of: from a qualified name to the module.
    """
    value = node.meta["val"]
    shape = tuple(int(size) for size in value.shape[1:])
    channel = max(len(shape) - 1, 0)
    if "pack" in node.meta:  # several values, side by side along their channels
        channel = node.meta["pack"].axis - 1
    elif len(shape) > 1 and not _are_channels_last(node, len(shape), module_of):
        channel = 0
    return Space(shape=shape, channel=channel, dtype=str(value.dtype).removeprefix("torch."))


def _are_channels_last(node: fx.Node, axes: int, module_of: Callable[[str], nn.Module]) -> bool:
    """By what reads the value, or else by what made it, or else by the custom of (tokens, channels)."""
    shape = node.meta["val"].shape[1:]
    readers = _search(node, lambda n: list(n.users), _same_shape)
    makers = (n for n in _search(node, lambda n: n.all_input_nodes, _same_shape) if _same_shape(n, node))
    for nodes in (readers, [node], [] if _moves_axes(node) else makers):
        verdict = _first_verdict(nodes, shape, module_of)
        if verdict is not None:
            return verdict
    # layers over the last axis may stand behind a reshape that folds the others, such as series into the batch
    around = (
        _search(node, towards, _has_last_axis) for towards in (lambda n: list(n.users), lambda n: n.all_input_nodes)
    )
    return axes == 2 or bool(_first_verdict(itertools.chain.from_iterable(around), shape, module_of))


def _first_verdict(
    nodes: Iterable[fx.Node], shape: Sequence[int], module_of: Callable[[str], nn.Module]
) -> bool | None:
    """Whether the channels come last, by the first of the operations that works along one axis of channels."""
    for node in nodes:
        if node.op == "call_module":
            verdict = _verdict_of_module(module_of(str(node.target)), shape)
            if verdict is not None:
                return verdict
        elif node.op == "call_function" and node.target in _FUNCTIONS_FIRST:
            return False
        elif node.op == "call_function" and node.target in _FUNCTIONS_LAST:
            return True
    return None


def _verdict_of_module(module: nn.Module, shape: Sequence[int]) -> bool | None:
    """The same of one call, whose layers say so by their kind and by how many channels they have.

    A norm over channels may stand between two transpositions, and a module that was not looked into may move axes
    within, to layers of either kind.
    """
    modules = list(module.modules())
    first, last = (any(isinstance(m, kinds) for m in modules) for kinds in (_CHANNELS_FIRST, _CHANNELS_LAST))
    if first == last:
        return None
    if last:
        return True
    counts = {getattr(m, name, None) for m in modules for name in _COUNTS}
    fits_first, fits_last = shape[0] in counts, shape[-1] in counts
    if fits_first and fits_last and len(modules) > 1:
        return None
    return fits_last and not fits_first


def _search(
    start: fx.Node, neighbours: Callable[[fx.Node], list[fx.Node]], keeps: Callable[[fx.Node, fx.Node], bool]
) -> Iterable[fx.Node]:
    """The operations around one, nearest first, through those that keep its axes where they are, and but for padding
    its shape.
    """
    queue, seen = list(neighbours(start)), {start}
    for _ in range(_STEPS):
        if not queue:
            return
        node = queue.pop(0)
        if node in seen:
            continue
        seen.add(node)
        yield node
        if (keeps(node, start) and not _moves_axes(node)) or node.target in _PADDING:
            queue += neighbours(node)


def _moves_axes(node: fx.Node) -> bool:
    """Whether a call has its axes in another order, which the shape of a square does not show."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _MOVING
    return node.op != "call_module" and str(getattr(node.target, "__name__", node.target)) in _MOVING


def _same_shape(node: fx.Node, other: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.shape == other.meta["val"].shape


def _has_last_axis(node: fx.Node, other: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor) and other.meta["val"].shape[-1] in value.shape[1:]
