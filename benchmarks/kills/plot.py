"""Rows -> histograms of the seconds until the last survivor had ended, by what befell the rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pararealize.figure import save_figure

__all__ = ["draw"]


def draw(seconds: Mapping[str, Sequence[float]], timeout: float, path: Path) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    (left, right) = figure.subplots(1, 2)
    words = {"kill": "killed (SIGKILL)", "raise": "raised", "stop": "stopped (SIGSTOP)", "hang": "hung in Python"}
    for axes, kinds, title in ((left, ("kill", "raise"), "death, exception"), (right, ("stop", "hang"), "hang")):
        runs = {kind: seconds.get(kind, ()) for kind in kinds}
        if not any(runs.values()):
            continue
        axes.hist(
            list(runs.values()),
            bins=20,
            stacked=True,
            label=[f"{words[kind]}: {len(values)} runs" for kind, values in runs.items()],
        )
        axes.set(title=title, xlabel="seconds until the last survivor had ended", ylabel="runs")
        axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
        axes.set_xlim(left=0)
    right.axvline(timeout, color="black", lw=1, ls="--", label=f"time-out, {timeout:g} s")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    save_figure(figure, path)
