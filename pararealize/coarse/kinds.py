"""The kinds of coarse blocks: one row a kind, with its name, where it fits, its size and how it is built.

    kind            F^j is                                                              built and counted from
    "paper"         units of two 3×3 convolutions (Lee, Lee and Park, section 4)        the two spaces
    "depthwise"     the same with a large-kernel depthwise convolution                  the two spaces
    "bottleneck"    a linear map and a narrow residual unit behind it                   the two spaces
    "linear"        the identity or one strided 1×1 convolution                         the two spaces
    "block"         copies of some of segment j+1's blocks, with fresh weights          the segment
    "exact"         segment j+1 itself                                                  the segment
    "scale", "low-rank", "dense", "folded": "linear", with outputs corrected            output_correction.py
    a callable      what it returns, in a plan "custom"                                 itself

A new kind is a row of ``_ROWS``: its module goes to ``units.py`` or a file like ``bottleneck_unit.py``, and its cost is
counted (or measured) on what ``build`` gives. ``"auto"`` is one of these, chosen in ``evidence_table.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.causality import Sides
from pararealize.analysis.fields.field import Fields
from pararealize.analysis.space import Space
from pararealize.errors import CoarseError

from .bottleneck_unit import bottleneck
from .copies import block_choice
from .coverage import copied_blocks_for, is_map, paper_units_for
from .custom import Builder, builder_name
from .family import family_of
from .one_sided import misfit
from .output_correction import CORRECTIONS, correction_kind
from .units import CoarseBlock, depthwise_units, linear_map, paper_units

__all__ = [
    "KINDS",
    "KIND_TABLE",
    "SPACE_KINDS",
    "Coarse",
    "CoarseKind",
    "coarse_name",
    "is_summed",
    "kind_for",
    "units_for",
]

Coarse: TypeAlias = str | Builder
BuildUnits: TypeAlias = Callable[[Space, Space, int, int, Sides], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseKind:
    """What the compiler asks of a kind of coarse block.

    Attributes:
        name: as users write it and plans show it.
        misfit: from the spaces X_j and X_{j+1} and the sides that may be read, what is wrong with them for this kind,
            empty where it fits; ``None`` where it fits any.
        fallback: the name of the kind in its place where it does not fit.
        units: from (chain, fields, n), the number of units of every block; ``None`` where it is not made of units.
        convolves: from (X_{j+1}, chain), whether a block has a convolution whose width the plan decides; ``None``
            where it never has.
        build: from (X_j, X_{j+1}, units, kernel, sides) to a module; ``None`` where the spaces do not say enough.
        blocks: from (the segment's blocks, units) to the offsets of those that it is made of; ``None`` elsewhere.
        copies: whether those blocks are copies, with parameters of their own, or the segment's.
    """

    name: str
    misfit: Callable[[Space, Space, Sides], str] | None = None
    fallback: str = ""
    units: Callable[[BlockChain, Fields, int], int] | None = None
    convolves: Callable[[Space, BlockChain], bool] | None = None
    build: BuildUnits | None = None
    blocks: Callable[[Sequence[Block], int], tuple[int, ...]] | None = None
    copies: bool = True


def _no_maps(x: Space, y: Space, sides: Sides) -> str:
    fits = is_map(x) and is_map(y) and len(x.extent) == len(y.extent)
    return misfit(x, y, sides) if fits else f"needs maps on both sides, {x} → {y} is not"


def _no_narrow_unit(x: Space, y: Space, sides: Sides) -> str:
    """A :class:`~pararealize.coarse.bottleneck_unit.Bottleneck` is for a vector, or one to three axes and channels."""
    fits = bool(y.shape) and len(y.extent) <= 3 and (y.channel == 0 or y.channels_last)
    return misfit(x, y, sides) if fits else f"needs channels at an end and at most three axes, {y} is not"


def _no_linear_map(x: Space, y: Space, sides: Sides) -> str:
    """The identity between equal spaces is counted on to be one, so that nothing may be shifted there."""
    shift = x.shape == y.shape and next((str(side) for side in sides if side is not None and side.offset), "")
    return f"is the identity, and the network reads {shift}" if shift else misfit(x, y, sides)


def _mixes_by_convolution(y: Space, chain: BlockChain) -> bool:
    """A bottleneck on channels-last maps and tokens does, unless the network itself mixes tokens by matrices."""
    return y.channel != 0 and not (len(y.extent) == 1 and family_of(chain) == "residual mixing")


_ROWS = (
    CoarseKind(
        name="paper",
        misfit=_no_maps,
        fallback="block",
        units=paper_units_for,
        build=lambda x, y, units, _, sides: CoarseBlock(x, y, paper_units(x, y, units, sides)),
    ),
    CoarseKind(
        name="depthwise",
        misfit=_no_maps,
        fallback="block",
        units=lambda *_: 1,
        convolves=lambda *_: True,
        build=lambda x, y, units, kernel, sides: CoarseBlock(x, y, depthwise_units(x, y, units, kernel, sides)),
    ),
    CoarseKind(
        name="bottleneck",
        misfit=_no_narrow_unit,
        fallback="linear",
        convolves=_mixes_by_convolution,
        build=lambda x, y, _, kernel, sides: bottleneck(x, y, kernel, sides),
    ),
    CoarseKind(
        name="linear",
        misfit=_no_linear_map,
        fallback="block",
        build=lambda x, y, _, __, sides: linear_map(x, y, sides),
    ),
    CoarseKind(name="block", units=copied_blocks_for, blocks=block_choice),
    CoarseKind(name="exact", blocks=lambda blocks, _: tuple(range(len(blocks))), copies=False),
)

KIND_TABLE: Mapping[str, CoarseKind] = {row.name: row for row in _ROWS}
KINDS = tuple(KIND_TABLE)
SPACE_KINDS = tuple(row.name for row in _ROWS if row.build is not None)  # follow from two spaces, whatever the network


def coarse_name(coarse: Coarse) -> str:
    """The name of a coarse kind as a plan shows it, after checking that there is such a kind.

    Raises:
        CoarseError: neither one of ``KINDS`` nor ``"auto"`` nor callable; says which kinds come close.
    """
    if isinstance(coarse, str) and (coarse in (*KINDS, "auto") or correction_kind(coarse) is not None):
        return coarse
    if not isinstance(coarse, str) and callable(coarse):
        name = builder_name(coarse)
        is_kind = name in (*KINDS, *CORRECTIONS, "auto")  # in a plan a function called "linear" would pass for the kind
        return f"{name}()" if is_kind else name
    names = (*KINDS, *CORRECTIONS, "auto")
    close = difflib.get_close_matches(str(coarse), names, n=2)
    meant = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    raise CoarseError(
        f"no coarse kind {coarse!r}{meant}; pass one of {', '.join(map(repr, names))}, "
        "or a callable (segment, x_shape, y_shape) -> nn.Module"
    )


def is_summed(coarse: Coarse) -> bool:
    """Whether the coarse blocks of that kind are identities between equal spaces, whose sums ranks may add up."""
    return coarse == "linear" or correction_kind(coarse) is not None


def kind_for(coarse: Coarse, x: Space, y: Space, sides: Sides = ()) -> tuple[str, str]:
    """The kind of one ``F^j`` and a note: a kind that does not fit the two spaces gives way to its fallback.

    Args:
        coarse: the kind asked for.
        x: X_j.
        y: X_{j+1}.
        sides: where ``F^j`` may read, by axis; both sides of all where empty.

    Returns ``(kind, note)``, ``note`` empty where the kind is the one asked for; a callable's kind is ``"custom"``.
    """
    name = kind = "linear" if correction_kind(coarse) is not None else coarse_name(coarse)
    if not isinstance(coarse, str):
        return "custom", ""
    reasons = []
    while (row := KIND_TABLE.get(kind)) is not None and row.misfit is not None and (why := row.misfit(x, y, sides)):
        reasons.append(f'"{kind}" {why}')
        kind = row.fallback
    return kind, f'{"; ".join(reasons)}: "{kind}" instead' if kind != name else ""


def units_for(kind: str, chain: BlockChain, fields: Fields, n: int) -> int:
    """Units in every ``F^j`` of a network cut into n segments, from the coverage of receptive fields.

    With K stages (runs of maps of one extent), u is the fewest units that see as much of a stage's input map as the
    stage itself does, to within one pixel, in the stage of ``F^1 … F^{K-1}`` that needs most; then
    ``N_c = ⌈K·u / n⌉``, so that the whole coarse network sees the same at every n. For ResNet-1001, K = 3 and four
    units see 31 of 32 pixels: ``N_c = ⌈12/n⌉``, as in the paper.

    Only ``"paper"`` and ``"block"`` look at fields, and only at those of maps; other kinds have one unit. Units of
    ``"block"`` are the segment's own blocks, of which a shallow stage needs nearly all to see as much, so that there
    are at most a quarter as many as a segment has, and at least one.

    Raises:
        FieldError: a stage holds an operation without a receptive-field rule.
    """
    row = KIND_TABLE.get(kind)
    return row.units(chain, fields, n) if row is not None and row.units is not None else 1
