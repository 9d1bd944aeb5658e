"""Medians by number of layers -> a plot of time and memory, with lines of slope 1 beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pararealize.figure import save_figure

from .measure import STAGES

__all__ = ["draw"]


def draw(sizes: Sequence[int], rows: Sequence[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    (left, right) = figure.subplots(1, 2)
    cpu = [row["cpu"] for row in rows]
    left.plot(sizes, cpu, "o-", color="black", label="all")
    for stage in STAGES:
        left.plot(sizes, [max(row["stages"][stage], 1e-4) for row in rows], ".-", lw=1, label=stage)
    _linear(left, sizes, cpu)
    left.set(title="time to convert, n = 12", xlabel="layers", ylabel="seconds of processor time")
    memory = [row["peak_mib"] for row in rows]
    right.plot(sizes, memory, "o-", color="black", label="peak above the model")
    _linear(right, sizes, memory)
    right.set(title="memory to convert, n = 12", xlabel="layers", ylabel="MiB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.grid(visible=True, alpha=0.3)
        axes.set_ylim(top=8 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=8, ncols=2, loc="upper left")
    save_figure(figure, path)


def _linear(axes: Any, sizes: Sequence[int], values: Sequence[float]) -> None:
    """Growth in proportion, through the largest size."""
    axes.plot(sizes, [values[-1] * size / sizes[-1] for size in sizes], "--", color="grey", label="linear")
