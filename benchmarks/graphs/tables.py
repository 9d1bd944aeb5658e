"""Rows of measurements -> Markdown tables: chains of kernels, and milliseconds beside the original's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import table

__all__ = ["markdown"]

REFERENCES = ("original eager", "original in one graph")
NOT_MEASURED = "not measured"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of all rows, and what ended early."""
    about = next((row for row in rows if row.get("section") == "machine"), {})
    device, is_measured = about.get("device", "?"), about.get("is measured", True)
    parts = ["# One GPU", f"Written by `python -m benchmarks.graphs` on {device}; see [README.md](README.md)."]
    if links := [row for row in rows if row.get("section") == "chains"]:
        head = ("words", "chains", "ms", "times one chain")
        lines = [
            (row["words"], row["chains"], *((row["ms"], row["times one chain"]) if is_measured else [NOT_MEASURED] * 2))
            for row in links
        ]
        parts += ["## As many kernels, in chains side by side in one graph", table(head, lines)]
    ways = [row for row in rows if "way" in row]
    if ways:
        parts += ["## A step", table(HEAD, [_line(row, ways, is_measured=is_measured) for row in ways])]
    ended = [row for row in rows if row.get("section") == "end" and row["error"]]
    parts += [f"{' '.join(row['of'])} ended early: {row['error']}" for row in ended]
    return "\n\n".join(parts) + "\n"


HEAD = ("network", "batch", "n × windows", "way", "ms", "host ms", "GiB", "capture s", "off by", "eager ÷", "graph ÷")


def _line(row: dict[str, Any], rows: Sequence[dict[str, Any]], *, is_measured: bool) -> tuple[Any, ...]:
    size = f"{row['n']} × {row['windows']}" if row["n"] else "–"
    first = (row["network"], row["batch"], size, row["way"])
    if "error" in row:
        return (*first, row["error"][:80], *[""] * 6)
    worst = f"{max(row['differs by'].values()):.0e}"
    if not is_measured:
        return (*first, NOT_MEASURED, "", "", "", worst, "", "")
    times = {
        other["way"]: other["ms"]
        for other in rows
        if (other["network"], other["batch"]) == first[:2] and other["n"] is None and "ms" in other
    }
    ratios = [f"{times[way] / row['ms']:.2f}" if way in times and row["ms"] else "" for way in REFERENCES]
    return (*first, row["ms"], row["host ms"], row["peak GiB"], row["seconds to capture"], worst, *ratios)
