"""BlockChain, Fields -> how many units and how wide a kernel coarse blocks need, by what the network itself sees.

A coarse block whose receptive field is smaller than its segment's cannot know what moved at the far end of it. It sees
more with more units (of two 3-wide convolutions, or blocks of the network's own) or with a wider kernel.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import TypeAlias

from pararealize.analysis.blocks import BlockChain, runs
from pararealize.analysis.fields.field import Fields, ReceptiveField
from pararealize.analysis.fields.reach import Number
from pararealize.analysis.space import Space

from .halving import halvings

__all__ = ["LARGEST_KERNEL", "copied_blocks_for", "is_map", "kernel_for", "paper_units_for"]

LARGEST_KERNEL = 7
SHARE_OF_BLOCKS = 4  # F^j copies at most one in so many of a segment's blocks: it has to be much cheaper

UnitsOfStage: TypeAlias = Callable[[BlockChain, Fields, int, int], int]


def is_map(space: Space) -> bool:
    """A map of one to three axes; (tokens, channels) is not one."""
    axes = len(space.extent)
    return 1 <= axes <= 3 and not (axes == 1 and space.channel == 1)


def paper_units_for(chain: BlockChain, fields: Fields, n: int) -> int:
    """Paper units in every ``F^j`` of a network cut into n segments, as ``units_for`` in ``kinds.py`` explains."""
    return _units_for(_paper_units_needed, chain, fields, n) or 1


def copied_blocks_for(chain: BlockChain, fields: Fields, n: int) -> int:
    """Copied blocks in every ``F^j``: at most a quarter as many as a segment has, and at least one."""
    units = _units_for(_blocks_needed, chain, fields, n)
    return max(1, min(units, len(chain.blocks) // (SHARE_OF_BLOCKS * n)))


def _units_for(needed: UnitsOfStage, chain: BlockChain, fields: Fields, n: int) -> int:
    """``⌈K·u / n⌉`` for K stages of maps, of which the neediest takes u units; the first has no F before it."""
    stages = _map_stages(chain)
    if not stages:
        return 0
    u = max(needed(chain, fields, first, last) for first, last in stages[1:] or stages)
    return math.ceil(len(stages) * u / n)


def kernel_for(x: Space, field: ReceptiveField) -> int:
    """The smallest odd kernel, 3 to 7, that sees as much of X_j as ``g^{j+1}`` does, to within one pixel; else 7."""
    if len(field.size) != len(x.extent):
        return LARGEST_KERNEL
    size = max(field.within(x.extent), default=1) - 1
    return next((k for k in range(3, LARGEST_KERNEL, 2) if k >= size), LARGEST_KERNEL)


def _map_stages(chain: BlockChain) -> list[tuple[int, int]]:
    """(first, last) of each run of blocks whose outputs are maps of one extent."""
    extents = (block.y.extent if is_map(block.y) else None for block in chain.blocks)
    return [(first, last) for extent, first, last in runs(extents) if extent is not None]


def _paper_units_needed(chain: BlockChain, fields: Fields, first: int, last: int) -> int:
    """The fewest paper units that see as much of the stage's input as the stage, to within one pixel."""
    x, y = chain.blocks[first].x, chain.blocks[last].y
    if len(x.extent) != len(y.extent):
        return 1
    field = fields.of(first, last)
    sizes = field.within(x.extent) if len(field.size) == len(x.extent) else x.extent
    paths = [halvings(a, b) for a, b in zip(x.extent, y.extent, strict=True)]
    return max(_units_to_see(size - 1, len(path)) for size, path in zip(sizes, paths, strict=True))


def _units_to_see(size: Number, steps: int) -> int:
    """Units of two 3-wide convolutions until their field is ``size``, the first ``steps`` units at stride 2."""
    field, jump, units = 1, 1, 0
    while field < size:
        field += 2 * jump
        jump *= 2 if units < steps else 1
        field += 2 * jump
        units += 1
    return max(units, 1)


def _blocks_needed(chain: BlockChain, fields: Fields, first: int, last: int) -> int:
    """The fewest blocks of the stage, from its first one on, that see as much as the whole, to within one pixel."""
    extent = chain.blocks[first].x.extent
    whole = fields.of(first, last)
    if len(whole.size) != len(extent):
        return 1
    target = [size - 1 for size in whole.within(extent)]

    def sees_enough(last: int) -> bool:
        field = fields.of(first, last)
        return len(field.size) == len(extent) and all(a >= b for a, b in zip(field.within(extent), target, strict=True))

    return bisect.bisect_left(range(first, last), True, key=sees_enough) + 1  # one block more never sees less
