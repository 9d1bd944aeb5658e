"""Rows of results -> tables of errors, mean ± standard deviation over the seeds, and the evidence for ``"auto"``."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, table
from pararealize.evidence import Evidence

from .measure import DATA
from .methods import ABLATIONS, Method, method_of
from .networks import FAMILIES

__all__ = ["Group", "evidence_of", "groups", "markdown", "write", "write_evidence"]

FEWEST = 3  # seeds without which a mean is no evidence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The runs of one method of one family on one data set, by seed, next to the original's of the same seeds."""

    data: str
    family: str
    name: str
    rows: Mapping[int, Mapping[str, Any]]
    originals: Mapping[int, Mapping[str, Any]]

    @property
    def method(self) -> Method:
        """The method of its name."""
        return method_of(self.name)

    @property
    def errors(self) -> list[float]:
        """By seed."""
        return [row["error"] for row in self.rows.values()]

    @property
    def first(self) -> Mapping[str, Any]:
        """Any run: what does not depend on the seed."""
        return next(iter(self.rows.values()))

    @property
    def excess(self) -> float | None:
        """Mean error above the original's, over the seeds that both have."""
        both = [seed for seed in self.rows if seed in self.originals]
        if not both:
            return None
        return statistics.mean(self.rows[s]["error"] - self.originals[s]["error"] for s in both)


def groups(rows: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """The rows by data set, family and method, in the order of the cases."""
    found: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for name, row in rows.items():
        if "failed" not in row:
            data, family, method, seed = name.split("/")
            found.setdefault((data, family, method), {})[int(seed)] = row
    return [
        Group(data=d, family=f, name=m, rows=dict(sorted(g.items())), originals=found.get((d, f, "original"), {}))
        for (d, f, m), g in found.items()
    ]


def write(results: Results, folder: Path) -> None:
    """``table1.md`` and ``ablations.md`` of what is there, and the picture of errors against costs."""
    from .plot import draw

    every = groups(results.rows)
    if not every:
        return
    (folder / "table1.md").write_text(markdown(every, results.about))
    if any(group.method.ablation for group in every):
        (folder / "ablations.md").write_text(ablations(every))
    draw(every, folder / "trade.svg")


def percent(values: Iterable[float], digits: int = 2) -> str:
    """``1.94 ± 0.32``, the standard deviation where there are two values or more."""
    each = [100 * value for value in values]
    mean = f"{statistics.mean(each):.{digits}f}"
    return f"{mean} ± {statistics.stdev(each):.{digits}f}" if len(each) > 1 else mean


def markdown(every: list[Group], about: Mapping[str, Any]) -> str:
    """Table 1: a table for each data set."""
    parts = [
        "# Errors of original and parareal networks",
        "Written by `python -m benchmarks.accuracy table1`; see [README.md](README.md). Error rates on the test images "
        "in per cent, mean ± standard deviation over the seeds. *Excess*: the mean error minus the original's of the "
        "same seeds, in percentage points. *Coarse*: FLOPs of all coarse blocks, forward and backward, of the "
        "original's. *Speed-up*: of a step with a device for each segment and free messages, by FLOPs.",
    ]
    for data in dict.fromkeys(group.data for group in every):
        here = [group for group in every if group.data == data and not group.method.ablation]
        parts += [f"## {data}", _about(data, here), _table(here), _verdict(here)]
    return "\n\n".join(parts) + "\n"


def _about(data: str, here: list[Group]) -> str:
    setting = DATA[data]
    size, epochs = setting.image_size, len(here[0].first.get("errors", ()))
    return (
        f"{size}×{size} pixels, {here[0].first.get('test_images', 0)} test images, {epochs} epochs of batches of "
        f"{setting.batch_size}."
    )


def _order(group: Group) -> tuple[int, int, float]:
    return list(FAMILIES).index(group.family), group.method.n, group.first.get("coarse_share", 0.0)


def _table(here: list[Group]) -> str:
    head = ("network", "N", "coarse", "adapters read", "error", "seeds", "excess", "parameters", "coarse", "speed-up")
    lines = []
    for group in sorted(here, key=_order):
        method, first = group.method, group.first
        cells: tuple[Any, ...] = (FAMILIES[group.family].title, "", "original", "", percent(group.errors))
        cells += (len(group.rows), "", f"{first['parameters']:,}", "", "1")
        if method.n:
            excess = "" if group.excess is None else f"{100 * group.excess:+.2f}"
            cells = (
                "", method.n, method.kind, method.source, percent(group.errors), len(group.rows), excess,
                f"{first['parameters']:,}", f"{100 * first['coarse_share']:.1f}%", f"{first['speedup']:.2f}",
            )  # fmt: skip
        lines.append(cells)
    return table(head, lines)


def _verdict(here: list[Group]) -> str:
    """Where the goal is met: a kind whose mean error is not above the original's, at 10% of its cost for N = 12."""
    lines = []
    for family in FAMILIES:
        mine = [group for group in here if group.family == family and group.excess is not None and group.method.n]
        for n in sorted({group.method.n for group in mine}):
            cheap = [g for g in mine if g.method.n == n and (n != 12 or g.first["coarse_share"] <= 0.1)]
            if cheap:
                best = min(cheap, key=lambda g: g.excess or 0.0)
                met = "met" if (best.excess or 0.0) <= 0 else "missed"
                lines.append(
                    (FAMILIES[family].title, n, met, f"{best.method.kind}, {best.method.source}",
                     f"{100 * (best.excess or 0.0):+.2f}", f"{100 * best.first['coarse_share']:.1f}%", len(best.rows))
                )  # fmt: skip
    head = ("network", "N", "mean error not above the original's", "best kind", "excess", "coarse", "seeds")
    return table(head, lines)


def ablations(every: list[Group]) -> str:
    """What happens when a part is taken away."""
    lines = []
    bases = {group.name.partition("+")[0] for group in every if group.method.ablation}
    for group in sorted(every, key=lambda g: (g.data, _order(g), g.name)):
        method = group.method
        if method.ablation or group.name in bases or not method.n:
            what = ABLATIONS.get(method.ablation, "as it is")
            n, kind = (method.n or "", method.kind if method.n and method.ablation not in ("none", "wide") else "")
            lines.append(
                (group.data, FAMILIES[group.family].title, n, kind, "the original" if not method.n else what,
                 percent(group.errors), len(group.rows), f"{group.first['parameters']:,}")
            )  # fmt: skip
    head = ("data", "network", "N", "coarse", "what", "error", "seeds", "parameters")
    return "# Ablations\n\nWritten by `python -m benchmarks.accuracy ablations`.\n\n" + table(head, lines) + "\n"


# ----------------------------------------------------------------------------------------------------------- evidence


def evidence_of(every: list[Group]) -> list[Evidence]:
    """A row of evidence for each method with enough seeds, over the seeds that the original has too."""
    found = []
    for group in every:
        both = [seed for seed in group.rows if seed in group.originals]
        if not group.method.n or group.method.ablation or len(both) < FEWEST:
            continue
        own, others = ([rows[s]["error"] for s in both] for rows in (group.rows, group.originals))
        found.append(
            Evidence(
                family=FAMILIES[group.family].evidence,
                data=group.data,
                n=group.method.n,
                kind=group.method.kind,
                source=group.method.source,
                error=round(statistics.mean(own), 5),
                deviation=round(statistics.stdev(own), 5),
                original=round(statistics.mean(others), 5),
                original_deviation=round(statistics.stdev(others), 5),
                seeds=len(both),
                coarse_share=round(group.first["coarse_share"], 5),
            )
        )
    return sorted(found, key=lambda row: (row.family, row.data, row.n, row.coarse_share, row.kind, row.source))


def write_evidence(every: list[Group], path: Path) -> None:
    """The table that comes with the package."""
    rows = [dataclasses.asdict(row) for row in evidence_of(every)]
    text = {"source": "benchmarks/accuracy/results.json", "rows": rows}
    path.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n")
