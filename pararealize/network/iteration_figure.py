"""Iterates -> a picture in a file: the error of each interface against the iteration."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from pararealize.figure import GRID, INK, STAGES, label, save_figure

from .iteration import Iterates

__all__ = ["draw_iterates"]


def draw_iterates(iterates: Iterates, path: str | Path, *, title: str = "") -> Path:
    """Draw relative errors into an SVG or PNG file, a line an interface, which ends where the interface is exact.

    Args:
        iterates: what :meth:`PararealModule.iterate` gives with ``errors=True``; of many interfaces, some are shown.
        path: where to; ``.svg`` or ``.png``. An existing file is replaced.
        title: what stands above; the model's class name when left out.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yscale("log")
    shown = iterates.shown
    for place, i in enumerate(shown):
        column = [row[i] for row in iterates.errors]
        points = [(k, error) for k, error in enumerate(column) if error > 0]
        name = f"$U_{{{iterates.interfaces[i].replace('_', ',')}}}$" + ("" if points else " (exact)")
        iterations, values = zip(*points, strict=True) if points else ((), ())
        colour, style = STAGES[place % len(STAGES)][1], "-" if place < len(STAGES) else "--"
        axes.plot(iterations, values, style, color=colour, linewidth=1.6, marker="o", markersize=3, label=name)
    axes.set_xticks(range(iterates.k + 1))
    axes.set_xlim(-0.2, max(iterates.k, 1) + 0.2)
    axes.set_xlabel("iteration k")
    axes.set_ylabel("relative error of the interface")
    axes.set_title(title or f"{label(iterates.model)}, n = {iterates.n}", loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=8, ncols=2 if len(shown) > 6 else 1)
    return save_figure(figure, path)
