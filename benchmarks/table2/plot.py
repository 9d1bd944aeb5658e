"""Speed-ups by N -> a plot: published, the paper's recipe here, ours by coarse kind, and the ideal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from pararealize.figure import save_figure

__all__ = ["draw"]

STYLES = {  # told apart by marker and line as well
    "published": ("k", "s", "-"),
    "paper's recipe": ("#7b8794", "s", "--"),
    "paper": ("#b35806", "o", "-"),
    "depthwise": ("#2b77b8", "^", "-"),
    "linear": ("#2f8f63", "D", "-"),
    "block": ("#7753b8", "v", "-"),
    "linear, summed": ("#2f8f63", "D", ":"),
}
LABELS = {
    "published": "published (batch 128, GPU)",
    "paper's recipe": "the paper's recipe, measured here",
    "paper": "ours, paper's coarse unit",
    "depthwise": "ours, depthwise",
    "linear": "ours, linear",
    "block": "ours, the network's own block",
    "linear, summed": "ours, linear, summed in pairs",
}


def draw(curves: Mapping[str, Mapping[int, float]], path: Path, *, title: str) -> None:
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    every = sorted({n for curve in curves.values() for n in curve})
    axes.plot([1, *every], [1, *every], color="#9fb3c8", linestyle=(0, (1, 2)), label="ideal")
    for name, curve in curves.items():
        colour, marker, line = STYLES[name]
        ns = sorted(curve)
        axes.plot(
            ns, [curve[n] for n in ns], color=colour, marker=marker, linestyle=line, markersize=5,
            fillstyle="none" if line != "-" else "full", label=LABELS[name],
        )  # fmt: skip
    axes.set(xlabel="segments N, a device each", ylabel="speed-up of one training step", title=title)
    axes.set_xticks(every)
    axes.set_ylim(0, 1.15 * max([1.0, *(value for curve in curves.values() for value in curve.values())]))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    save_figure(figure, path)
