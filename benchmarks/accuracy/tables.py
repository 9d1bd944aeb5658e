"""Rows of results -> tables of errors, mean ± standard deviation over the seeds, and the evidence for ``"auto"``."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, table
from pararealize.coarse.evidence_table import Evidence

from .groups import Group, groups
from .measure import DATA
from .methods import ABLATIONS
from .networks import FAMILIES
from .published import PUBLISHED, PUBLISHED_HEAD
from .times import TIMES, time_table

__all__ = ["evidence_of", "markdown", "write", "write_evidence"]

MOST = 0.1  # of the original's FLOPs, in all coarse blocks
ABOUT = (
    "Written by `python -m benchmarks.accuracy draw`. Error rates on the test images in per cent, mean ± standard "
    "deviation over the seeds. *Excess*: the mean error minus the original's of the same seeds, in percentage points, "
    "± the standard error of that mean: an excess of less than twice that may be chance. *Coarse*: FLOPs of all coarse "
    "blocks, forward and backward, of the original's. *Speed-up*: of a step with N devices and free messages, by the "
    "plan's own count; linear coarse blocks are added up over the devices where that is faster. *N* in brackets: the "
    "segments of the longest window, where it has no more blocks. *auto*: the most windows that the planner finds free."
)
ROUNDING = 1e-9  # of sums of error rates
FEWEST = 3  # seeds without which a mean is no evidence


def write(results: Results, folder: Path) -> None:
    """``table.md`` of all rows, and the pictures of errors against costs, and with and without windows."""
    from .plot import draw, draw_windows

    every = groups(results.rows)
    if not every:
        return
    (folder / "table.md").write_text(markdown(every))
    draw(every, folder / "trade.svg")
    if any(group.method.windowed for group in every):
        draw_windows(every, folder / "windows.svg")


def percent(values: Iterable[float], digits: int = 2) -> str:
    """``1.94 ± 0.32``, the standard deviation where there are two values or more."""
    each = [100 * value for value in values]
    mean = f"{statistics.mean(each):.{digits}f}"
    return f"{mean} ± {statistics.stdev(each):.{digits}f}" if len(each) > 1 else mean


def excess_of(group: Group) -> str:
    """``+0.28 ± 0.20``: the mean excess in percentage points and, of two seeds or more, its standard error."""
    each = [100 * value for value in group.excesses]
    if not each:
        return ""
    mean = f"{statistics.mean(each):+.2f}"
    return f"{mean} ± {statistics.stdev(each) / math.sqrt(len(each)):.2f}" if len(each) > 1 else mean


def markdown(every: list[Group]) -> str:
    """All tables."""
    parts = ["# Errors of original and parareal networks", ABOUT]
    for data in dict.fromkeys(group.data for group in every):
        here = [group for group in every if group.data == data and not group.method.ablation]
        about = _about(data, here)
        parts += [f"**Errors, {data}** ({about}):", _table(here)]
        parts += [f"**The goal, {data}**: a mean error not above the original's, at a coarse cost of at most 10%:"]
        parts += [_verdict(here)]
        parts += [f"**Published, {data}**:", table(PUBLISHED_HEAD, PUBLISHED[data])] if data in PUBLISHED else []
        parts += [f"**Time to a fixed error, {data}**: {TIMES}", time_table(here)]
    if any(group.method.ablation for group in every):
        parts += ["**Ablations**", _ablations(every)]
    return "\n\n".join(parts) + "\n"


def _about(data: str, here: list[Group]) -> str:
    setting = DATA[data]
    size = setting.image_size
    epochs = sorted({len(group.first["errors"]) for group in here if "errors" in group.first})
    return (
        f"{size}×{size} pixels, {here[0].first.get('test_images', 0)} test images, "
        f"{' or '.join(map(str, epochs))} epochs of batches of {setting.batch_size}"
    )


def _order(group: Group) -> tuple[int, int, int, float]:
    return (
        list(FAMILIES).index(group.family),
        group.method.n,
        group.first.get("windows", 1),
        group.method.order + group.first.get("coarse_share", 0.0),
    )


def _table(here: list[Group]) -> str:
    head = ("network", "N", "windows", "coarse", "adapters read", "error", "seeds")
    head += ("excess", "parameters", "coarse", "speed-up")
    lines = []
    for group in sorted(here, key=_order):
        method, first = group.method, group.first
        cells: tuple[Any, ...] = (FAMILIES[group.family].title, "", "", "original", "", percent(group.errors))
        cells += (len(group.rows), "", f"{first['parameters']:,}", "", "1")
        if method.n:
            cells = (
                "", group.segments, group.windows, method.kind, method.reads, percent(group.errors), len(group.rows),
                excess_of(group), f"{first['parameters']:,}", f"{100 * first['coarse_share']:.1f}%",
                f"{group.speedup:.2f}",
            )  # fmt: skip
        lines.append(cells)
    return table(head, lines)


def _verdict(here: list[Group]) -> str:
    """Where the goal is met, and by which of the kinds with most seeds; where missed, the one that comes nearest."""
    lines = []
    for family in FAMILIES:
        mine = [group for group in here if group.family == family and group.excess is not None and group.method.n]
        for n in sorted({group.method.n for group in mine}):
            cheap = [g for g in mine if g.method.n == n and g.first["coarse_share"] <= MOST]
            cheap = [g for g in cheap if len(g.rows) == max(len(other.rows) for other in cheap)]
            if cheap:
                best = min(cheap, key=lambda g: g.excess or 0.0)
                met = "met" if (best.excess or 0.0) <= ROUNDING else "missed"
                lines.append(
                    (FAMILIES[family].title, n, met, f"{best.method.kind}, {best.method.reads}", best.windows,
                     excess_of(best), f"{100 * best.first['coarse_share']:.1f}%", len(best.rows))
                )  # fmt: skip
    head = ("network", "N", "goal", "best kind", "windows", "excess", "coarse", "seeds")
    return table(head, lines)


def _ablations(every: list[Group]) -> str:
    """What happens when a part is taken away."""
    lines = []
    ablated = [group for group in every if group.method.ablation]
    bases = {(g.data, g.family, name) for g in ablated for name in ("original", g.name.partition("+")[0])}
    for group in sorted(every, key=lambda g: (g.data, _order(g), g.name)):
        method = group.method
        if method.ablation or (group.data, group.family, group.name) in bases:
            what = ABLATIONS.get(method.ablation, "as it is")
            n, kind = (method.n or "", method.kind if method.n and method.ablation not in ("none", "wide") else "")
            lines.append(
                (group.data, FAMILIES[group.family].title, n, kind, "the original" if not method.n else what,
                 percent(group.errors), len(group.rows), f"{group.first['parameters']:,}")
            )  # fmt: skip
    head = ("data", "network", "N", "coarse", "what", "error", "seeds", "parameters")
    return table(head, lines)


# ----------------------------------------------------------------------------------------------------------- evidence


def evidence_of(every: list[Group]) -> list[Evidence]:
    """A row of evidence for each method of one window with enough seeds, over the seeds that the original has too.

    A kind that was tried alone says nothing of which kind to take, and has none.
    """
    rows = []
    for group in every:
        both = [seed for seed in group.rows if seed in group.originals]
        if not group.method.n or group.method.ablation or group.method.windowed or len(both) < FEWEST:
            continue
        errors, originals = ([rows[s]["error"] for s in both] for rows in (group.rows, group.originals))
        rows.append(
            Evidence(
                family=FAMILIES[group.family].evidence,
                data=group.data,
                n=group.method.n,
                kind=group.method.kind,
                source=group.method.source,
                error=round(statistics.mean(errors), 5),
                deviation=round(statistics.stdev(errors), 5),
                original=round(statistics.mean(originals), 5),
                original_deviation=round(statistics.stdev(originals), 5),
                seeds=len(both),
                coarse_share=round(group.first["coarse_share"], 5),
                stem_share=round(group.first.get("stem_share", 0.0), 5),
            )
        )
    kinds = Counter((row.family, row.data, row.n) for row in rows)
    rows = [row for row in rows if kinds[row.family, row.data, row.n] > 1]
    return sorted(
        rows, key=lambda row: (row.family, row.data, row.n, row.stem_share, row.coarse_share, row.kind, row.source)
    )


def write_evidence(every: list[Group], path: Path) -> None:
    """The table that comes with the package."""
    rows = [dataclasses.asdict(row) for row in evidence_of(every)]
    text = {"source": "benchmarks/accuracy/results.json", "rows": rows}
    path.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n")
