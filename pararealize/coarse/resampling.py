"""Two spaces -> the steps between them, of which adapters and linear coarse blocks are made.

Maps (images, signals, volumes) are halved by 3×3 max pools of stride 2, then a 1×1 convolution sets the channels;
adaptive average pooling does what halving cannot (odd ratios, enlarging, tokens); tokens and vectors are mapped by a
linear layer on their channels. Exactly one step, ``project``, has parameters.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pararealize.analysis.causality import Causality, Sides
from pararealize.analysis.space import Space

from .one_sided import Pad, by_axis, kernel_extent, path, shifts

__all__ = ["CONVOLUTIONS", "Move", "Resample", "RouteStep", "route"]

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_MAX_POOL: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE_POOL: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_RESAMPLE: dict[int, Any] = {axes: getattr(functional, f"adaptive_avg_pool{axes}d") for axes in (1, 2, 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStep:
    """One step of an adapter: the submodule's name, what a person would call it, and how to make it."""

    name: str
    text: str
    make: Callable[[], nn.Module]


def route(source: Space, target: Space, *, linear: bool = False, sides: Sides = ()) -> tuple[RouteStep, ...]:
    """The steps from one space to another; ``linear`` takes averages for maxima and leaves the bias out.

    They keep to ``sides``, where :func:`~pararealize.coarse.one_sided.misfit` has nothing to say against it.
    """
    steps = _Route(source, target, linear=linear, sides=sides)
    if not source.shape:
        steps.add("unsqueeze", "as one channel", lambda: nn.Unflatten(0, (-1, 1)))
    if not target.extent:
        steps.to_vector()
    elif not source.extent:
        steps.from_vector()
    else:
        steps.between_maps()
    if not target.shape:
        steps.add("squeeze", "as a scalar", lambda: nn.Flatten(0))
    return tuple(steps.steps)


class Move(nn.Module):
    """Move the channels of a batch from one axis of its samples to another: ``movedim`` as a module."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        """The same values with axis ``source`` of each sample at ``target``."""
        return x.movedim(self.source + 1, self.target + 1)

    def extra_repr(self) -> str:
        """Where from and where to."""
        return f"axis {self.source} → {self.target}"


class Resample(nn.Module):
    """Adaptive average pooling in a ratio: ``source`` becomes ``target``, and other sizes scale with them.

    ``(batch, channels, *extent)`` with one to three spatial axes; where the target is larger, values are repeated.
    """

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        """Average or repeat neighbours until the extent is ``target`` (for an extent of ``source``)."""
        # round(size·t/s), in integers so that symbolic sizes stay symbolic
        sizes = [(size * t + s // 2) // s for size, s, t in zip(x.shape[2:], self.source, self.target, strict=True)]
        return _RESAMPLE[len(sizes)](x, sizes)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Source and target extent."""
        return f"{_times(self.source)} → {_times(self.target)}"


class _Route:
    """The steps so far, and the layout (channels and their axis, extent) that they lead to."""

    def __init__(self, source: Space, target: Space, *, linear: bool, sides: Sides) -> None:
        self.source, self.target, self.linear = source, target, linear
        self.sides = by_axis(sides, len(source.extent))
        self.channels, self.extent, self.channel = source.channels, source.extent, source.channel
        self.goal = _at_most_three_axes(target.extent)
        self.steps: list[RouteStep] = []
        self.projected = False

    def to_vector(self) -> None:
        """Average over the finest grid that has no more numbers than the target, then one linear layer."""
        if self.extent:
            self.move(0)
            self.fold()
            grid = _finest_grid(self.extent, self.channels, self.target.channels)
            if grid != self.extent:
                pool = _AVERAGE_POOL[len(grid)]
                self.add("pool", f"average to {_times(grid)}", lambda: pool(grid))
            self.add("flatten", "flatten", nn.Flatten)
            self.channels, self.extent = self.channels * math.prod(grid), ()
        self.project(self.target.channels)

    def from_vector(self) -> None:
        """One linear layer to the finest grid that has no more numbers than the source, then repeat."""
        channels = self.target.channels
        grid = _finest_grid(self.goal, channels, self.channels)
        self.project(channels * math.prod(grid))
        self.add("unflatten", f"to {channels}×{_times(grid)}", lambda: nn.Unflatten(1, (channels, *grid)))
        self.channels, self.extent = channels, grid
        self.resample(self.goal)
        self.unfold()
        self.move(self.target.channel)

    def between_maps(self) -> None:
        """Halve, set the channels where the map is smallest, resample; a linear layer where channels stand last."""
        source, target = self.source, self.target
        grows = math.prod(target.extent) >= math.prod(source.extent)
        self.shift()
        if grows and source.channel == len(source.extent):
            self.project(target.channels)
        if self.extent != target.extent or target.channel != len(target.extent):
            self.move(0)
            self.fold()
            self.align()
            if not (_is_tokens(source) or _is_tokens(target)) or not self.averages():
                self.halve(self.goal)
            if grows:
                self.project(target.channels)
            self.resample(self.goal)
            if target.channel != len(target.extent):
                self.project(target.channels)
            self.unfold()
        self.move(target.channel)
        self.project(target.channels)

    def align(self) -> None:
        """The number of axes: a token sequence is a grid row by row, other maps lose or gain leading axes."""
        axes = len(self.goal)
        extra = len(self.extent) - axes
        if extra > 0 and _is_tokens(self.target):
            grid = _scaled(self.extent, self.goal[0])
            self.halve(grid)
            self.resample(grid)
        elif extra > 0:
            self.resample((1,) * extra + self.extent[extra:])
        if extra > 0:
            self.add("flatten", "flatten", lambda: nn.Flatten(2, 2 + extra))
            self.extent = (math.prod(self.extent[: extra + 1]), *self.extent[extra + 1 :])
        elif extra < 0:
            grid = (1,) * -extra + self.extent[:1]
            if _is_tokens(self.source):
                grid = _scaled(self.goal, self.extent[0])
                self.resample((math.prod(grid),))
            sizes = (*grid[:-1], -1)
            self.add("unflatten", f"to {_times(grid)}", lambda: nn.Unflatten(2, sizes))
            self.extent = (*grid, *self.extent[1:])

    def shift(self) -> None:
        """Move every position to where it may be read; most stand there already."""
        ends = shifts(self.sides)
        if any(map(any, ends)):
            behind = 1 if self.channel == len(self.extent) else 0
            self.move(self.channel if behind else 0)
            self.add("shift", "shift", lambda: Pad(ends, behind=behind))
            self.extent = tuple(size + a + b for size, (a, b) in zip(self.extent, ends, strict=True))

    def averages(self) -> bool:
        """Whether averages over whole parts of every axis read no more than may be read."""
        return all(
            side is None or size <= goal or (side.frame and size == goal * side.stride)
            for side, size, goal in zip(self.sides, self.extent, self.goal, strict=False)
        )

    def halve(self, goal: tuple[int, ...]) -> None:
        """3×3 max pools of stride 2, an axis at a time where the axes differ; averages will do it if linear."""
        sides = self.sides if len(self.sides) == len(self.extent) else (None,) * len(self.extent)
        sizes = zip(self.extent, goal, sides, strict=True)
        paddings = [() if self.linear and side is None else path(size, g, side) for size, g, side in sizes]
        own = Causality(side="own")  # of kernels one wide, the maximum is linear
        for pads in itertools.zip_longest(*paddings):  # None where an axis is halved no more
            stride = tuple(1 if pad is None else 2 for pad in pads)
            windows = [
                kernel_extent(2 * s - 1, pad, None if pad is None else own if self.linear else side)
                for s, pad, side in zip(stride, pads, sides, strict=True)
            ]
            kernel, padding = tuple(w.kernel for w in windows), tuple(w.padding for w in windows)
            ends = [w.ends for w in windows]
            text = f"max_pool {_times(kernel)}/{stride[0] if len(set(stride)) == 1 else _times(stride)}"
            make = partial(_MAX_POOL[len(pads)], kernel, stride=stride, padding=padding)
            if any(map(any, ends)):
                self.add("pool", f"one-sided {text}", partial(_padded, ends, make))
            else:
                self.add("pool", text, make)
            rows = zip(self.extent, padding, kernel, stride, ends, strict=True)
            self.extent = tuple((n + sum(e) + 2 * p - k) // s + 1 for n, p, k, s, e in rows)

    def resample(self, goal: tuple[int, ...]) -> None:
        """Adaptive average pooling for the ratio that is left, if any."""
        if self.extent != goal:
            extent = self.extent
            verb = "average" if math.prod(goal) < math.prod(extent) else "repeat"
            self.add("resample", f"{verb} {_times(extent)} to {_times(goal)}", lambda: Resample(extent, goal))
            self.extent = goal

    def project(self, channels: int) -> None:
        """The one step with parameters: a 1×1 convolution without bias, or a linear layer where channels stand last."""
        if self.projected:
            return
        dtype = self.target.torch_dtype
        before, axes = self.channels, len(self.extent)
        if self.channel == axes:
            text = f"linear {before}→{channels}"
            self.add("project", text, lambda: nn.Linear(before, channels, bias=not self.linear, dtype=dtype))
        else:
            make = CONVOLUTIONS[axes]
            text = f"conv {_times((1,) * max(axes, 2))} {before}→{channels}"
            self.add("project", text, lambda: make(before, channels, 1, bias=False, dtype=dtype))
        self.channels, self.projected = channels, True

    def move(self, channel: int) -> None:
        """Bring the channels to another axis."""
        if channel != self.channel:
            before = self.channel
            text = "channels first" if channel == 0 else "channels last" if channel == len(self.extent) else "move axes"
            self.add("move", text, lambda: Move(before, channel))
            self.channel = channel

    def fold(self) -> None:
        """Merge the leading axes of a map of more than three."""
        folded = _at_most_three_axes(self.extent)
        if folded != self.extent:
            last = 2 + len(self.extent) - 3
            self.add("fold", f"fold to {_times(folded)}", lambda: nn.Flatten(2, last))
            self.extent = folded

    def unfold(self) -> None:
        """The inverse of :meth:`fold` for the target's map."""
        if self.extent != self.target.extent:
            leading = self.target.extent[:-2]
            self.add("unfold", f"unfold to {_times(self.target.extent)}", lambda: nn.Unflatten(2, leading))
            self.extent = self.target.extent

    def add(self, name: str, text: str, make: Callable[[], nn.Module]) -> None:
        """Append a step under a name of its own: pool, pool2, …"""
        times = sum(step.name.rstrip("0123456789") == name for step in self.steps) + 1
        self.steps.append(RouteStep(name=name if times == 1 else f"{name}{times}", text=text, make=make))


def _padded(ends: Sequence[tuple[int, int]], make: Callable[[], nn.Module]) -> nn.Module:
    """A max pool behind padding that is never the largest value."""
    return nn.Sequential(Pad(ends, value=-math.inf), make())


def _is_tokens(space: Space) -> bool:
    """(tokens, channels): one axis besides the channels, which stand last."""
    return len(space.extent) == 1 and space.channel == 1


def _at_most_three_axes(extent: tuple[int, ...]) -> tuple[int, ...]:
    return extent if len(extent) <= 3 else (math.prod(extent[:-2]), *extent[-2:])


def _finest_grid(extent: tuple[int, ...], channels: int, limit: int) -> tuple[int, ...]:
    """Halve the extent until channels × grid has no more than ``limit`` numbers, or one a channel."""
    while channels * math.prod(extent) > limit and max(extent) > 1:
        extent = tuple(-(-size // 2) for size in extent)
    return extent


def _scaled(extent: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """The grid of this shape with about so many points: (224, 224) and 197 give (14, 14)."""
    factor = (tokens / math.prod(extent)) ** (1 / len(extent))
    return tuple(max(1, round(size * factor)) for size in extent)


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))
