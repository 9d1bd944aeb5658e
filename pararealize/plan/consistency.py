"""Rows of a plan -> what they say that cannot be, alone and against one another; the network is not needed.

The planner makes no such rows; a file that was changed may hold them. Spaces of adapters and coarse blocks follow from
those of the segments, kinds of coarse blocks from the kind that was asked for and from the spaces.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pararealize.analysis.causality import Sides, causal_axes
from pararealize.analysis.space import Space
from pararealize.coarse.kinds import KIND_TABLE, KINDS, kind_for
from pararealize.coarse.one_sided import misfit, shifted
from pararealize.coarse.output_correction import correction_kind
from pararealize.coarse.spec import AdapterPlan, CoarsePlan
from pararealize.table import shortened

from .spec import SegmentPlan, Window, windows_of

__all__ = ["cut_faults", "kind_faults", "row_faults"]

_DEVICE = re.compile(r"[A-Za-z]\w*(:\d{1,3})?")  # of any machine
_WIDEST = 2**10


def row_faults(
    segments: Sequence[SegmentPlan], adapters: Sequence[AdapterPlan], coarse_blocks: Sequence[CoarsePlan], source: str
) -> list[str]:
    """Faults of spaces, of sides, and of what leads from where to where; and of the names of devices.

    Args:
        segments: g^{m,j}, window after window.
        adapters: C^{m,j} likewise, one fewer a window.
        coarse_blocks: F^{m,j} likewise.
        source: what the adapters of the first window read, ``"input"`` or ``"stem"``.
    """
    spaces = [(row.label, row.x, row.y) for row in segments]
    spaces += [(row.name, row.x, row.y) for row in adapters]
    spaces += [(row.name, row.x, row.y) for row in coarse_blocks]
    faults = [
        f"{name}'s {what} cannot be: {space.fault}"
        for name, *ends in spaces
        for what, space in zip(("input", "output"), ends, strict=True)
        if space.fault
    ]
    if faults:
        return faults  # what follows is computed with them
    for s in segments:
        if not _DEVICE.fullmatch(s.device):
            faults.append(f"{s.label} is on {shortened(s.device, 60)!r}, which is no device such as 'cuda:0'")
        if s.blocks == 1 and s.first_block != s.last_block:
            faults.append(f"{s.label} is one block, from {s.first_block!r} to {s.last_block!r}")
    windows = windows_of(segments, adapters, coarse_blocks)
    for window in windows:
        reads_window = len(windows) > 1 and (window.m > 1 or source == "stem")
        faults += _window_faults(window, "window" if reads_window else source)
    return faults


def _window_faults(window: Window, source: str) -> list[str]:
    """Faults of adapters and coarse blocks against the segments of their window."""
    segments, adapters, faults = window.segments, window.adapters, list[str]()
    origin = adapters[0].x if source == "input" and adapters else segments[0].x
    for adapter, segment in zip(adapters, segments[1:], strict=True):
        name = adapter.name
        if adapter.source != source:
            faults.append(f"{name} reads the {adapter.source}, and adapters read the {source}")
        faults += _different(name, "reads", adapter.x, f"adapters read the {source}:", origin)
        faults += _different(name, "gives", adapter.y, f"{segment.label} reads", segment.x)
        faults += _side_faults(name, adapter.x, adapter.y, adapter.causal, routed=True)
        if adapter.kind and (source != "window" or adapter.x != adapter.y):
            faults.append(f"{name} corrects an identity, and leads from the {source}, {adapter.x}, to {adapter.y}")
        if (adapter.rank > 0) != (adapter.kind == "low-rank") or adapter.rank > adapter.y.channels:
            faults.append(f"{name} is {adapter.kind or 'no correction'} of rank {adapter.rank} on {adapter.y}")
    for row, (before, segment) in zip(window.coarse_blocks, pairwise(segments), strict=True):
        name, routed = row.name, row.kind in KIND_TABLE and KIND_TABLE[row.kind].build is not None
        faults += _different(name, "reads", row.x, f"{before.label} gives", before.y)
        faults += _different(name, "gives", row.y, f"{segment.label} gives", segment.y)
        faults += _side_faults(name, row.x, row.y, row.causal, routed=routed)
    return faults


def _different(name: str, verb: str, space: Space, other: str, wanted: Space) -> list[str]:
    if space == wanted:
        return []
    return [f"{name} {verb} {space.description}, and {other} {wanted.description}"]


def _side_faults(name: str, x: Space, y: Space, sides: Sides, *, routed: bool) -> Iterator[str]:
    """What is wrong with the sides on which a module reads; ``routed`` where it is built from its spaces."""
    if len(sides) not in (0, len(y.extent)):
        yield f"{name} has sides for {len(sides)} axes, and {y} has {len(y.extent)}"
        return
    single = [side.fault for side in sides if side is not None and side.fault]
    if single:
        yield f"{name}'s sides cannot be: {'; '.join(single)}"
    elif routed and any(sides):
        if len(sides) == len(x.extent) and min(shifted(x.extent, sides), default=1) < 1:
            yield f"{name} reads {causal_axes(sides)}, which leaves nothing of {x}"
        elif why := misfit(x, y, sides):
            yield f"{name} {why}"


def kind_faults(coarse: str, coarse_blocks: Sequence[CoarsePlan]) -> list[str]:
    """Faults of the kinds of coarse blocks, against the one that was asked for, and of their units and kernels."""
    faults = []
    for row in coarse_blocks:
        name = row.name
        if row.kind not in (*KINDS, "custom"):
            faults.append(f"{name} is of kind {shortened(row.kind, 60)!r}; there are {', '.join(KINDS)} and custom")
            continue
        if coarse in KINDS or correction_kind(coarse) is not None:
            kind, _ = kind_for(coarse, row.x, row.y, row.causal)
            if row.kind != kind:
                faults.append(f"{name} is {row.kind!r}, and where {coarse!r} is asked for it is {kind!r}")
        elif (row.kind == "custom") == (coarse == "auto"):
            faults.append(f"{name} is {row.kind!r}, and {shortened(coarse, 60)!r} was asked for")
        elif row.kind != "custom" and kind_for(row.kind, row.x, row.y, row.causal)[0] != row.kind:
            faults.append(f"{name} is {row.kind!r}, which leads not from {row.x} to {row.y}")
        faults += _unit_faults(name, row)
    return faults


def _unit_faults(name: str, row: CoarsePlan) -> Iterator[str]:
    kind = KIND_TABLE.get(row.kind)
    has_units = kind is not None and kind.units is not None
    convolves = kind is not None and kind.convolves is not None
    if has_units != (row.units > 0):
        yield f"{name} has {row.units} units, and {row.kind!r} has {'one or more' if has_units else 'none'}"
    elif row.kind in ("paper", "depthwise") and row.units > row.parameters:
        yield f"{name} has {row.units} units with {row.parameters} parameters"
    if row.kernel and not (convolves and row.kernel % 2 and row.kernel < _WIDEST):
        yield f"{name}'s convolution is {row.kernel} wide, and {row.kind!r} has {'an odd one' if convolves else 'none'}"
    if row.kind == "depthwise" and not row.kernel:
        yield f"{name} is 'depthwise' and has no convolution"


def cut_faults(cuts: str | tuple[str, ...], segments: Sequence[SegmentPlan]) -> list[str]:
    """What is wrong with the names of blocks at which segments begin, where they were given."""
    if isinstance(cuts, str):
        return [] if cuts in ("cost", "paper") else [f"cuts are {shortened(cuts, 60)!r}, not 'cost', 'paper' or names"]
    starts = [segment.first_block for segment in segments]
    implied = {segment.first_block for segment in segments if segment.j == 1}  # where windows begin
    if len(set(cuts)) == len(cuts) and set(starts) - implied <= set(cuts) <= set(starts):
        return []
    shown = [shortened(", ".join(map(repr, names)), 200) or "nowhere" for names in (cuts, starts[1:])]
    return [f"cuts are at {shown[0]}, and segments begin at {shown[1]}"]
