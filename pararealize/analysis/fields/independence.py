"""BlockChain -> IndependentAxes: axes along which no position of an output reads another position of the input.

Series of a channel-independent forecaster stay apart from the input to the output, whatever turns, folds and unrolls
the axes in between. An adapter that averages over that axis, or takes it for the channels, would show one series to
another. So each such axis is followed through the interfaces, by trying the network out:

    input        48×5       axis 1, which counts as the channels: no adapter from here
    interface 0  5×12×32    axis 0
    interface 1  5×12×32    axis 0: an adapter from interface 0 maps every position of this axis by itself
    output       12×5       axis 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import fx

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.causality import Causality, Sides
from pararealize.analysis.space import Space

from .probe import Probe

__all__ = ["AxisPath", "IndependentAxes", "candidates", "follow_axes"]

# one axis through the network: its number in the first space, and in the space of each interface behind it; None where
# the interface has no such axis
AxisPath: TypeAlias = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IndependentAxes:
    """The independent axes of a network, and where its interfaces have them.

    Attributes:
        from_input: those of the raw input; behind it, interface m has number m + 1.
        from_stem: those of the stem's output, which is interface 0.
        unknown: why that is not known; empty where it is.
    """

    from_input: tuple[AxisPath, ...] = ()
    from_stem: tuple[AxisPath, ...] = ()
    unknown: str = ""

    def bind(self, sides: Sides, x: Space, y: Space, first: int, stop: int, *, from_input: bool) -> Sides:
        """The sides that a module from x to y in the place of blocks ``first`` up to ``stop`` may read.

        Of an independent axis, it may read its own position alone. Where x and y do not have that axis in the same
        place, there is no such module, and all is ``"unclear"``.
        """
        for path in self.from_input if from_input else self.from_stem:
            place = _place(x, path[0 if from_input else first])
            if place is None or place != _place(y, path[stop + from_input]) or len(x.extent) != len(y.extent):
                return (Causality(side="unclear"),) * max(len(y.extent), 1)
            before = sides or (None,) * len(y.extent)
            own = before[place] or Causality(side="own")
            sides = (*before[:place], own, *before[place + 1 :])
        return sides


def _place(space: Space, axis: int | None) -> int | None:
    """Which one of the extent an axis is; none where it counts as the channels."""
    if axis is None or axis == space.channel:
        return None
    return axis - (axis > space.channel)


def follow_axes(chain: BlockChain, origin: Block, axes: Sequence[int], probe: Probe) -> tuple[AxisPath, ...]:
    """The independent ones among some axes of an origin, each followed through the interfaces behind it.

    Where every space on the way is a vector there are none: channels are what adapters mix.

    Args:
        chain: the network's blocks.
        origin: a block from the raw input, or from the stem's output.
        axes: axes of its input, counted without the batch.
        probe: what tries blocks of this chain out.

    Raises:
        UnprobedError: the network cannot be tried out.
    """
    independent: set[int] = set()
    for node in _outputs(chain):
        pairs = _same_size(origin.x, _shape(node), [axis for axis in axes if axis not in independent])
        independent.update(axis for axis, _ in _measured(probe, origin, node, pairs))
    if not independent:
        return ()
    paths: dict[int, list[int | None]] = {axis: [axis] for axis in sorted(independent)}
    interfaces = dict.fromkeys((chain.blocks[0].input, *(block.output for block in chain.blocks)))
    interfaces.pop(origin.input, None)
    for node in interfaces:
        pairs = _same_size(origin.x, _shape(node), list(paths))
        places = dict(_measured(probe, origin, node, pairs))
        for axis, path in paths.items():
            path.append(places.get(axis))
    spaces = (origin.x, *(block.y for block in chain.blocks))
    return tuple(map(tuple, paths.values())) if any(len(space.shape) > 1 for space in spaces) else ()


def candidates(chain: BlockChain, origin: Space) -> list[int]:
    """The axes of an origin that some output has in the same size."""
    pairs = (pair for node in _outputs(chain) for pair in _same_size(origin, _shape(node), range(len(origin.shape))))
    return sorted({axis for axis, _ in pairs})


def _outputs(chain: BlockChain) -> list[fx.Node]:
    """What the network returns, each value once."""
    outputs: list[fx.Node] = []
    fx.map_arg(chain.capture.graph.output_node().args[0], outputs.append)
    return list(dict.fromkeys(outputs))


def _measured(probe: Probe, origin: Block, node: fx.Node, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    piece = dataclasses.replace(origin, output=node)
    return probe.independent(piece, pairs) if pairs else []


def _shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a value without its batch; of what is no tensor, or has none, empty."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape[1:]) if isinstance(value, torch.Tensor) else ()


def _same_size(x: Space, shape: tuple[int, ...], axes: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of an axis of x and one of another shape, equally long and of more than two positions."""
    return [(i, j) for i in axes for j, size in enumerate(shape) if x.shape[i] == size > 2]
