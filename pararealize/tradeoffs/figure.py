"""A Tradeoff -> a picture in a file: the measured error of each plan against its predicted speed-up.

Numbers of devices can be told without colour: each has a marker of its own.
"""

from pathlib import Path

from matplotlib.figure import Figure

from pararealize.argument_types import typed_arguments
from pararealize.errors import CalibrationError, OutputError
from pararealize.figure import BLUE, FAINT, GRID, INK, LINE, ORANGE, label, save_figure
from pararealize.table import quantity

from .report import Tradeoff

__all__ = ["draw_tradeoff"]

LOOKS = ((BLUE, "o"), (ORANGE, "s"), ("#3f8f5b", "^"), ("#8a5fa8", "D"), ("#b4554f", "v"), ("#4f8aa8", "P"))


@typed_arguments(OutputError, tradeoff=CalibrationError)
def draw_tradeoff(tradeoff: Tradeoff, path: str | Path, *, title: str = "") -> Path:
    """Draw a trade-off into an SVG or PNG file, which appears only when it is complete.

    Args:
        tradeoff: what :func:`~pararealize.tradeoff` gave.
        path: where to; what it ends in, ``.svg`` or ``.png``, is the format. An existing file is replaced.
        title: what stands above; the model's class name when left out.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    figure = Figure(figsize=(7.2, 4.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.12, right=0.97, top=0.8, bottom=0.14)
    rows = [row for row in tradeoff.rows if row.windows]
    numbers = sorted({row.n for row in rows})
    for n, (colour, marker) in zip(numbers, (LOOKS * len(numbers))[: len(numbers)], strict=True):
        points = [(row.speedup, 100 * row.error) for row in rows if row.n == n]
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=6, label=quantity(n, "device"))
    front = [row for row in tradeoff.front if row.windows]
    axes.plot([row.speedup for row in front], [100 * row.error for row in front], color=FAINT, linewidth=1, zorder=0)
    if rows:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}%" if f"{value:e}"[0] in "25" else "")
    axes.set_xlabel("predicted speed-up, messages free", fontsize=9, color=INK)
    axes.set_ylabel("error of the output, of its norm", fontsize=9, color=INK)
    axes.grid(axis="both", which="major", color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8.5, colors=LINE)
    if numbers:
        axes.legend(fontsize=9, frameon=False, loc="lower right")
    heading = f"{title or label(tradeoff.model)}: speed-up against error"
    figure.text(0.12, 0.93, heading, fontsize=13, color=INK, weight="bold")
    text = f"coarse {label(tradeoff.coarse)!r}, fitted to {quantity(tradeoff.samples, 'sample')}, errors on "
    figure.text(
        0.12,
        0.865,
        text + f"{tradeoff.tested} others; the line joins what nothing beats in both",
        fontsize=8.5,
        color=FAINT,
    )
    return save_figure(figure, path)
