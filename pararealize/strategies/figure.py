"""A StrategyComparison -> a picture in a file: speed-ups against devices and against batch, a curve a strategy.

Strategies can be told without colour: each has a marker and a line of its own.
"""

from pathlib import Path

from matplotlib.figure import Figure

from pararealize.argument_types import typed_arguments
from pararealize.errors import OutputError, PlanError
from pararealize.figure import BLUE, FAINT, GRID, INK, LINE, ORANGE, label, save_figure
from pararealize.table import quantity

from .comparison import StrategyComparison

__all__ = ["draw_strategies"]

LOOKS = ((BLUE, "o", "-"), (ORANGE, "s", "--"), ("#3f8f5b", "^", "-."), ("#8a5fa8", "D", ":"))


@typed_arguments(OutputError, comparison=PlanError)
def draw_strategies(comparison: StrategyComparison, path: str | Path, *, title: str = "") -> Path:
    """Draw the curves of a comparison into an SVG or PNG file, which appears only when it is complete.

    Args:
        comparison: what :func:`~pararealize.plan_strategies` gave, with its curves.
        path: where to; what it ends in, ``.svg`` or ``.png``, is the format. An existing file is replaced.
        title: what stands above; the model's name when left out.

    Raises:
        PlanError: it has no curves.
        OutputError: another ending, or the file cannot be written.
    """
    if not comparison.curves:
        raise PlanError("this comparison has no curves; make it with curves=True, and with two devices or more")
    figure = Figure(figsize=(7.6, 4.0))
    figure.subplots_adjust(left=0.09, right=0.98, top=0.8, bottom=0.13, wspace=0.22)
    names = list(dict.fromkeys(point.name for point in comparison.curves))
    fixed = {
        "devices": quantity(comparison.batch, "sample"),
        "batch": quantity(comparison.devices, "device"),
    }
    for axes, (axis, words) in zip(figure.subplots(1, 2), fixed.items(), strict=True):
        for name, (colour, marker, line) in zip(names, LOOKS, strict=False):
            points = [(p.value, p.speedup) for p in comparison.curves if (p.axis, p.name) == (axis, name)]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker=marker, linestyle=line, color=colour, markersize=5, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        for one in (axes.xaxis, axes.yaxis):
            one.set_major_formatter(lambda value, _: f"{value:g}")
        axes.axhline(1, color=FAINT, linewidth=0.8)
        axes.set_xlabel(axis, fontsize=9, color=LINE)
        axes.set_title(words, fontsize=9.5, color=LINE)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5, colors=LINE)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("speed-up over one device", fontsize=9, color=LINE)
    figure.axes[0].legend(fontsize=8.5, frameon=False)
    heading = f"{title or label(comparison.model)}: predicted speed-up of a training step"
    figure.text(0.09, 0.93, heading, fontsize=12.5, color=INK, weight="bold")
    figure.text(0.09, 0.875, label(f"{comparison.device}, {comparison.link}"), fontsize=8.5, color=FAINT)
    return save_figure(figure, path)
