"""Plan -> a plain-text table, at most 120 columns wide: what ``print(plan)`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .plan import AdapterPlan, CoarsePlan, PartPlan, Plan, SegmentPlan

__all__ = ["count", "plan_text"]

_NAME = 22  # characters of a block's name; longer ones lose their middle


def plan_text(plan: Plan) -> str:
    """Segments, adapters, coarse blocks, totals and notes."""
    cuts = plan.cuts if isinstance(plan.cuts, str) else "by name"
    title = f"{plan.model}: n = {plan.n}, coarse {plan.coarse!r}, cuts {cuts!r}, adapters read the {plan.source}"
    tables = [
        _aligned(
            [
                _SEGMENTS,
                _part("stem", plan.stem, plan.stem_blocks),
                *map(_segment, plan.segments),
                _part("head", plan.head),
            ],
            3,
        )
    ]
    if plan.n > 1:
        tables.append(_aligned([_ADAPTERS, *map(_adapter, plan.adapters)], 4))
        tables.append(_aligned([_COARSE, *map(_coarse, plan.coarse_blocks)], 3))
    tables.append(_totals(plan))
    tables.append("\n".join(f"note: {note}" for note in plan.notes))
    text = "\n\n".join([title, *filter(None, tables)])
    return "\n".join(line if len(line) <= plan.WIDTH else line[: plan.WIDTH - 1] + "…" for line in text.splitlines())


_SEGMENTS = ("g", "first block", "last block", "blocks", "input", "output", "params", "GFLOPs", "backward", "device")
_ADAPTERS = ("C", "input", "output", "recipe", "params", "MFLOPs")
_COARSE = ("F", "kind", "", "input", "output", "params", "GFLOPs", "backward")


def _part(name: str, part: PartPlan, blocks: int = 0) -> tuple[str, ...]:
    return (
        name,
        "",
        "",
        str(blocks or ""),
        "",
        "",
        count(part.parameters),
        _giga(part.flops_forward),
        _giga(part.flops_backward),
        "",
    )


def _segment(row: SegmentPlan) -> tuple[str, ...]:
    names = _short(row.first_block), _short(row.last_block)
    sizes = count(row.parameters), _giga(row.flops_forward), _giga(row.flops_backward)
    return (str(row.j), *names, str(row.blocks), str(row.x), str(row.y), *sizes, row.device)


def _adapter(row: AdapterPlan) -> tuple[str, ...]:
    return str(row.j), str(row.x), str(row.y), row.recipe, count(row.parameters), f"{row.flops_forward / 1e6:.2f}"


def _coarse(row: CoarsePlan) -> tuple[str, ...]:
    units = f"× {row.units}" if row.units else ""
    kernel = f", {row.kernel} wide" if row.kernel else ""
    sizes = count(row.parameters), _giga(row.flops_forward), _giga(row.flops_backward)
    return (str(row.j), row.kind, units + kernel, str(row.x), str(row.y), *sizes)


def _totals(plan: Plan) -> str:
    p = plan.parameters
    unit = "operations a sample" if plan.unit == "flops" else f"seconds a batch of {plan.batch}"
    return (
        f"parameters: {count(p.original)} original + {count(p.adapters)} adapters + {count(p.coarse)} coarse "
        f"= {count(p.total)}\n"
        f"one step:   {plan.serial:.4g} {unit} in sequence, {plan.critical_path:.4g} on the longest path of the plan\n"
        f"speed-up:   {plan.virtual_speedup:.2f}×, with a device for each segment and free messages"
    )


def _aligned(rows: Sequence[Sequence[str]], words: int) -> str:
    """Columns as wide as their widest cell: the first ``words`` and the last word-like one to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = {i for i in range(len(widths)) if i < words or rows[0][i] in ("device", "input", "output")}
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{w}}" if i in left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 1]}…{name[-_NAME // 2 :]}"


def count(number: float) -> str:
    """A number as people write it: three digits or so, and a letter.

    Example:
        >>> count(640), count(41_200), count(10_351_044), count(2.5e9)
        ('640', '41.2k', '10.35M', '2.50G')
    """
    scales = [(1e12, "T", 2, 5e6), (1e9, "G", 2, 5e3), (1e6, "M", 2, 50), (1e3, "k", 1, 0.5)]
    for size, letter, digits, half in scales:
        if number >= size - half:  # what the smaller scale would round up to 1000
            return f"{number / size:.{digits}f}{letter}"
    return f"{number:.0f}"


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3f}"
