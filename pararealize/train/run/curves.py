"""The history of a training run, or the losses of its steps -> a picture of their curves in a file."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pararealize.figure import BLUE, FAINT, GRID, INK, LINE, ORANGE, PALE, save_figure

from .history import History

__all__ = ["draw_curves", "draw_losses"]

STEP, TRAIN, TEST = PALE, BLUE, ORANGE


def draw_curves(history: History, path: str | Path, *, title: str = "") -> Path:
    """Draw loss and error over the epochs, of the training batches and of the test part, into an SVG or PNG file.

    Args:
        history: of the run.
        path: of the file, ``.svg`` or ``.png``. An existing file is replaced.
        title: heading of the picture.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    losses, errors = figure.subplots(1, 2)
    epochs = history.epochs
    steps_an_epoch = epochs[-1].step / epochs[-1].epoch if epochs else 1.0
    step_x, epoch_x = [row.step / steps_an_epoch for row in history.steps], [row.epoch for row in epochs]
    marker = "o" if len(epochs) < 40 else ""
    for axes, name in ((losses, "loss"), (errors, "error")):
        steps, train, test = (
            [getattr(row, field) for row in rows]
            for rows, field in ((history.steps, name), (epochs, name), (epochs, f"test_{name}"))
        )
        axes.plot(step_x, steps, color=STEP, linewidth=0.8, label="training, some steps")
        axes.plot(epoch_x, train, color=TRAIN, linewidth=1.6, marker=marker, markersize=3, label="training, an epoch")
        axes.plot(epoch_x, test, color=TEST, linewidth=1.6, marker=marker, markersize=3, linestyle="--", label="test")
        if name == "loss" and all(value > 0 for value in (*steps, *train, *test)):
            axes.set_yscale("log")
        axes.set_title(name, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("epoch", fontsize=8, color=LINE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8, colors=FAINT)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        _open_frame(axes)
    errors.set_ylim(bottom=0)
    errors.yaxis.set_major_formatter(PercentFormatter(1.0))
    if epochs:
        last = epochs[-1]
        errors.annotate(f"{last.test_error:.2%}", (last.epoch, last.test_error), xytext=(4, 6), color=TEST, fontsize=8,
                        textcoords="offset points", ha="right")  # fmt: skip
    losses.legend(frameon=False, fontsize=8, labelcolor=INK)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, weight="bold")
    return save_figure(figure, path)


def _open_frame(axes: Axes) -> None:
    """Lines at the left and below alone, and pale ones across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID)


def draw_losses(losses: Sequence[float], path: str | Path, *, title: str = "", window: int = 10) -> Path:
    """Draw the losses of a training run, one a step, and their running mean, into an SVG or PNG file.

    Args:
        losses: one number a step.
        path: of the file, ``.svg`` or ``.png``. An existing file is replaced.
        title: heading of the picture.
        window: over how many steps the running mean is taken.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color=STEP, linewidth=1, marker="o", markersize=2, label="loss of a step")
    means = [sum(losses[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(losses))]
    axes.plot(steps, means, color=TRAIN, linewidth=2, label=f"mean of {window} steps")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left", color=INK)
    _open_frame(axes)
    axes.legend(frameon=False)
    return save_figure(figure, path)
