"""Rows of milliseconds -> a Markdown table, and a plot of the ratio to the original over n."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import Results, table
from pararealize.figure import save_figure

from .measure import ORIGINAL, PARAREAL

__all__ = ["draw", "markdown"]

REFERENCES = ("original", "original captured")


def markdown(results: Results) -> str:
    """Milliseconds of a step, and beside them how many times faster than the original run eagerly and captured."""
    head = ("batch", "n", "way", "ms", "least–most", "original eager ÷ this", "original captured ÷ this")
    lines = [
        (row["batch"], row["n"] or "–", way, *_cells(row["ways"][way], row["ways"]))
        for row in sorted(results.rows.values(), key=lambda row: (row["batch"], row["n"] or 0))
        for way in (*ORIGINAL, *PARAREAL)
        if way in row["ways"]
    ]
    gpus = ", ".join(sorted({row["gpu"] for row in results.rows.values()}))
    return "\n\n".join(
        (
            "# One GPU: milliseconds of a training step of ResNet-1001",
            f"Written by `python -m benchmarks.graphs` on {gpus}; see [README.md](README.md).",
            table(head, lines) + "\n",
        )
    )


def _cells(cell: dict[str, Any], ways: dict[str, Any]) -> tuple[str, ...]:
    if "error" in cell:
        return (cell["error"], "", "", "")
    ratios = [f"{ways[way]['ms'] / cell['ms']:.2f}" if "ms" in ways.get(way, {}) else "" for way in REFERENCES]
    return (f"{cell['ms']:.1f}", f"{cell['least']:.1f}–{cell['most']:.1f}", *ratios)


def draw(results: Results, path: Path) -> None:
    """How many times faster than the captured original each way is, over n, a panel a batch."""
    rows = [row for row in results.rows.values() if row["n"] and "ms" in row["ways"].get("original captured", {})]
    batches = sorted({row["batch"] for row in rows})
    if not batches:
        return
    figure = Figure(figsize=(4 * len(batches), 4), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)
    for axes, batch in zip(panels[0], batches, strict=True):
        here = sorted((row for row in rows if row["batch"] == batch), key=lambda row: row["n"])
        for way in PARAREAL:
            points = [
                (row["n"], row["ways"]["original captured"]["ms"] / row["ways"][way]["ms"])
                for row in here
                if "ms" in row["ways"].get(way, {})
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", label=way)
        axes.axhline(1, color="grey", lw=1)
        axes.set(title=f"batch {batch}", xlabel="segments", ylabel="captured original ÷ this")
        axes.grid(visible=True, alpha=0.3)
    panels[0][0].legend(fontsize=8)
    save_figure(figure, path)
