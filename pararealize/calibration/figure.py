"""A Calibration -> a picture in a file: the error of every adapter and interface, stage by stage.

Stages can be told without colour: each has a marker and a line of its own.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pararealize.argument_types import typed_arguments
from pararealize.errors import CalibrationError, OutputError
from pararealize.figure import BLUE, FAINT, GRID, INK, LINE, ORANGE, label, save_figure
from pararealize.table import share

from .report import Calibration
from .rows import indices

__all__ = ["draw_calibration"]

LOOKS: dict[str, dict[str, Any]] = {
    "before": {"color": FAINT, "marker": "s", "linestyle": ":"},
    "after": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "fine-tuned": {"color": ORANGE, "marker": "^", "linestyle": "--"},
}
LEAST = 1e-16  # what an exact value is drawn at


@typed_arguments(OutputError, calibration=CalibrationError)
def draw_calibration(calibration: Calibration, path: str | Path, *, title: str = "") -> Path:
    """Draw a calibration into an SVG or PNG file, which appears only when it is complete.

    Args:
        calibration: what :func:`~pararealize.calibration.fitting.calibrate` gave.
        path: where to; what it ends in, ``.svg`` or ``.png``, is the format. An existing file is replaced.
        title: what stands above; the model's class name when left out.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    n, windows = calibration.n, calibration.windows
    inputs = [(m, j) for m, j in indices(windows) if j > 1]  # of segments, that adapters give
    outputs = list(indices(windows))[1:]
    count = len(outputs)
    figure = Figure(figsize=(min(max(7.5, 4.5 + 0.35 * (count + 1)), 16), 3.9))
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    figure.subplots_adjust(left=0.09, right=0.98, top=0.71, bottom=0.2)
    for errors in calibration.stages:
        _line(left, range(len(inputs)), errors.adapters, errors.stage)
        _line(right, range(count + 1), [*errors.interfaces[1:], errors.output], errors.stage)
    left.set_title("inputs $x_j$, from adapters $C^j$", fontsize=9.5, color=INK)
    right.set_title("corrected outputs $z_j$, by coarse blocks $F^{j-1}$", fontsize=9.5, color=INK)
    left.set_ylabel("relative error", fontsize=9, color=INK)
    for axes, letter, places in ((left, "x", inputs), (right, "z", outputs)):
        step = max(1, math.ceil(len(places) / 16))
        labels = [f"${letter}_{{{_name(index)}}}$" for index in places[::step]]
        ends = (count, "output") if axes is right else ()
        axes.set_xticks([*range(0, len(places), step), *ends[:1]], [*labels, *ends[1:]])
        axes.set_xlim(-0.4, len(places) - 0.6 + (axes is right))
    for axes in (left, right):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(_plain)
        axes.axhline(1, color=LINE, linewidth=0.8)
        axes.grid(axis="y", which="major", color=GRID, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=8.5, colors=LINE)
    figure.text(
        0.09, 0.93, f"{title or label(calibration.model)}, n = {n}{_windows(windows)}: calibrated",
        fontsize=13, color=INK, weight="bold",
    )  # fmt: skip
    figure.text(0.09, 0.825, _summary(calibration), fontsize=8.5, color=FAINT, linespacing=1.4)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.08, 0.005), ncols=3, fontsize=9, frameon=False)
    return save_figure(figure, path)


def _line(axes: Axes, places: Iterable[int], values: Iterable[float], stage: str) -> None:
    pairs = zip(places, values, strict=True)
    points = [(place, max(value, LEAST)) for place, value in pairs if math.isfinite(value)]
    if points:
        look = LOOKS.get(stage, LOOKS["after"])
        axes.plot(*zip(*points, strict=True), label=stage, linewidth=1.6, markersize=5.5, **look)


def _name(index: tuple[int, int]) -> str:
    m, j = index
    return f"{m},{j}" if m else f"{j}"


def _windows(windows: Sequence[int]) -> str:
    return f", {len(windows)} windows" if len(windows) > 1 else ""


def _plain(value: float, _: int) -> str:
    """Powers of ten and their doubles, triples and fives as people write them; nothing at other ticks."""
    return f"{value:g}" if f"{value:e}"[0] in "1235" else ""


def _summary(calibration: Calibration) -> str:
    text = f"coarse {label(calibration.coarse)!r}, fitted to {calibration.samples} samples, errors on "
    text += f"{calibration.tested} others" if calibration.held_out else "the same"
    if calibration.accuracy is None:
        return text
    stages = ", ".join(f"{errors.stage} {share(errors.accuracy or 0, 1)}" for errors in calibration.stages)
    return f"{text}\naccuracy: original {share(calibration.accuracy, 1)}, {stages}"
