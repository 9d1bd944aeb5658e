"""Timeline -> a plain-text table, at most 120 columns wide: what ``print(timeline)`` shows."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .timeline import Kind, Timeline

__all__ = ["seconds_text", "timeline_text"]

_HEAD = ("rank", "segments", "fine", "adapter", "coarse", "stem, head", "forward", "backward", "busy", "idle", "idle %")


def timeline_text(timeline: Timeline) -> str:
    """A row a rank, the step, its efficiency, and its critical path."""
    step = timeline.step
    unit, scale = _unit(step)
    third: Kind = "relax" if any(action.kind == "relax" for action in timeline.actions) else "adapter"
    rows: list[tuple[str, ...]] = [tuple(third if name == "adapter" else name for name in _HEAD)]
    for rank in range(timeline.ranks):
        own = sorted({action.j for action in timeline.of(rank)})
        segments = "–".join(dict.fromkeys(map(str, (own[0], own[-1])))) if own else ""
        ends = timeline.busy(rank, "stem") + timeline.busy(rank, "head")
        busy, idle = timeline.busy(rank), timeline.idle(rank)
        parts = (
            timeline.busy(rank, "fine"),
            timeline.busy(rank, third),
            timeline.busy(rank, "coarse"),
            ends,
            timeline.busy(rank, direction="forward"),
            timeline.busy(rank, direction="backward"),
            busy,
            idle,
        )
        share = f"{100 * idle / step:.0f}" if step else ""
        rows.append((str(rank), segments, *(f"{part * scale:.2f}" for part in parts), share))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    table = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    ranks = f"{timeline.ranks} device{'s' if timeline.ranks > 1 else ''}"
    title = f"{timeline.model}: one {timeline.origin} step, n = {timeline.n} on {ranks}, times in {unit}"
    sums = (
        f"step {seconds_text(step)}, the original's own work {seconds_text(timeline.serial)}: speed-up "
        f"{timeline.speedup:.2f}×, efficiency {100 * timeline.efficiency:.0f} %"
    )
    path = textwrap.fill("critical path: " + " → ".join(map(str, timeline.critical_path)), 118, subsequent_indent="  ")
    notes = [f"note: {note}" for note in timeline.notes]
    return "\n".join([title, "", *table, "", sums, path, *notes])


def seconds_text(seconds: float) -> str:
    """Seconds as people write them: ``1.2 s``, ``3.45 ms``, ``12.3 µs``."""
    unit, scale = _unit(seconds)
    return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:.0f} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return unit, scale
    return "µs", 1e6
