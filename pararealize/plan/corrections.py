"""A coarse kind, a window -> the output corrections K^{m,j} that the window has, before they are priced.

They follow from the kind that was asked for, from the spaces of segments and from the kinds of coarse blocks, so that a
plan that is read can be held against them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.last_layer import layers_at_ends
from pararealize.analysis.space import Space
from pararealize.coarse.output_correction import (
    CorrectionKind,
    correction_kind,
    correction_parameters,
    correction_rank,
)
from pararealize.coarse.spec import CoarsePlan, CorrectionPlan
from pararealize.table import shortened

from .spec import SegmentPlan, Window

__all__ = ["CorrectionShape", "correction_faults", "correction_shapes", "layer_misfits"]


class CorrectionShape(NamedTuple):
    """What a :class:`CorrectionPlan` says but for its price."""

    m: int
    j: int
    kind: CorrectionKind
    rank: int
    differs: bool
    reads_x: bool
    y: Space


def correction_shapes(coarse: object, window: Window) -> Iterator[CorrectionShape]:
    """The K^{m,j} of a window: of those segments from whose outputs on neither space nor coarse blocks change it.

    The first of them reads its input besides, which is what the window begins with. Of ``"folded"`` ones there are
    only those for which the network has a layer.

    Args:
        coarse: the kind that was asked for; others than linear ones with corrections have none.
        window: with its segments and coarse blocks.
    """
    request, begins = correction_kind(coarse), True
    if request is None or window.sequential:
        return
    segments = window.segments
    same = len(segments)  # how many segments in front give other spaces
    while same > 1 and segments[same - 2].y == segments[-1].y and _is_identity(window.coarse_blocks[same - 2]):
        same -= 1
    for segment in segments[same - 1 :]:
        kind, space, differs = request.kind, segment.y, segment.x == segment.y and request.kind != "folded"
        rank = correction_rank(kind, request.rank, space)
        yield CorrectionShape(segment.m, segment.j, kind, rank, differs, begins and differs, space)
        begins = False


def correction_faults(coarse: str, windows: Iterable[Window], corrections: Iterable[CorrectionPlan]) -> list[str]:
    """Faults of the corrections of outputs and of adapters, against the coarse kind that was asked for.

    Args:
        coarse: the kind.
        windows: with as many adapters and coarse blocks as they need, whose spaces can be.
        corrections: all that the plan has, of segments that there are.
    """
    windows, request, faults = list(windows), correction_kind(coarse), list[str]()
    wanted = {shape[:2]: shape for window in windows for shape in correction_shapes(coarse, window)}
    for row in corrections:
        shape = wanted.pop(row.index, None)
        if shape is None:
            faults.append(f"{row.name} is a correction where {coarse!r} has none")
            continue
        faults += [
            f"{row.name}'s {name} is {getattr(row, name)}, and that of {coarse!r} is {value}"
            for name, value in shape._asdict().items()
            if getattr(row, name) != value
        ]
        parameters = correction_parameters(
            shape.kind, shape.rank, shape.y, differs=shape.differs, reads_x=shape.reads_x
        )
        if row.parameters != parameters:
            faults.append(f"{row.name} has {row.parameters} parameters, and that of {coarse!r} has {parameters}")
        if bool(row.layer) != (row.kind == "folded"):
            faults.append(f"{row.name} is {row.kind!r} and its layer is {shortened(row.layer, 60)!r}")
    if request is None or request.kind != "folded":
        faults += [f"segment {m},{j} has no correction, and {coarse!r} has one there" for m, j in wanted]
    for adapter in (adapter for window in windows for adapter in window.adapters):
        wanted_map = None if request is None else request.of_adapters
        here: tuple[str, int] = ("", 0)
        if wanted_map is not None and (adapter.kind or adapter.recipe == "identity"):
            here = (wanted_map[0], correction_rank(*wanted_map, adapter.y))
        if (adapter.kind, adapter.rank) != here:
            texts = [f"{kind or 'no correction'} of rank {rank}" for kind, rank in ((adapter.kind, adapter.rank), here)]
            faults.append(f"{adapter.name} is {texts[0]}, and that of {coarse!r} is {texts[1]}")
    return faults


def layer_misfits(
    chain: BlockChain, segments: Iterable[SegmentPlan], corrections: Iterable[CorrectionPlan]
) -> list[str]:
    """Layers in which maps are to be folded, and which a network does not have where they should be."""
    folded = [row for row in corrections if row.layer]
    last = {segment.index: segment.last for segment in segments}
    layers = layers_at_ends(chain) if folded else ()
    here = {row.name: layers[last[row.index]] for row in folded}
    return [
        f"{row.name} folds into {here[row.name] or 'nothing'}, not {shortened(row.layer, 60)}"
        for row in folded
        if here[row.name] != row.layer
    ]


def _is_identity(row: CoarsePlan) -> bool:
    return row.kind == "linear" and row.x == row.y
