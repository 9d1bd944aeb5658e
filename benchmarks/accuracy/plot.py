"""Groups of runs -> a picture of errors against costs: a panel a family, a line a number of segments."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pararealize.figure import save_figure

from .networks import FAMILIES

if TYPE_CHECKING:
    from .groups import Group

__all__ = ["draw"]

MARKS = {"linear": "o", "bottleneck": "s", "depthwise": "^", "block": "D", "paper": "P"}
COLOURS = {3: "tab:green", 6: "tab:orange", 12: "tab:red"}
LEAST_SHARE = 1e-3  # what costs nothing stands here on the logarithmic axis


def draw(every: Sequence[Group], path: Path) -> None:
    """Mean errors with their standard deviations over the cost of the coarse blocks; the original as a grey line."""
    data = list(dict.fromkeys(group.data for group in every))
    families = [family for family in FAMILIES if any(group.family == family for group in every)]
    figure = Figure(figsize=(3.3 * len(families), 3.6 * len(data) + 0.5), layout="constrained")
    panels = figure.subplots(len(data), len(families), squeeze=False)
    for line, name in zip(panels, data, strict=True):
        for axes, family in zip(line, families, strict=True):
            _panel(axes, [g for g in every if (g.data, g.family) == (name, family) and not g.method.ablation])
            axes.set_title(f"{FAMILIES[family].title}, {name}", fontsize=9)
            axes.set_xlabel("coarse FLOPs of the original's")
        line[0].set_ylabel("test error, %")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=6, fontsize=8)
    save_figure(figure, path)


def _panel(axes: Any, here: Sequence[Group]) -> None:
    for group in here:
        mean, deviation = _mean(group)
        if not group.method.n:
            axes.axhline(mean, color="grey", lw=1)
            axes.axhspan(mean - deviation, mean + deviation, color="grey", alpha=0.2, lw=0)
            continue
        share, from_input = max(group.first["coarse_share"], LEAST_SHARE), group.method.source == "input"
        colour = COLOURS.get(group.method.n, "tab:blue")
        axes.errorbar(
            share * (1 + 0.06 * (group.method.n - 6) / 6), mean, deviation, fmt=MARKS.get(group.method.kind, "x"),
            color=colour, markerfacecolor="none" if from_input else colour, ms=6, lw=1, capsize=2,
            markeredgecolor="black" if group.method.stem_blocks else colour,
        )  # fmt: skip
    axes.axvline(0.1, color="black", ls=":", lw=1)
    axes.set(xscale="log", xlim=(LEAST_SHARE / 1.5, 4))
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.set_xticks([1e-3, 1e-2, 1e-1, 1], ["0", "1%", "10%", "100%"])
    axes.grid(visible=True, alpha=0.3)


def _mean(group: Group) -> tuple[float, float]:
    errors = [100 * error for error in group.errors]
    return statistics.mean(errors), statistics.stdev(errors) if len(errors) > 1 else 0.0


def _legend() -> list[Line2D]:
    shapes = [Line2D([], [], color="black", marker=mark, ls="", label=kind) for kind, mark in MARKS.items()]
    numbers = [Line2D([], [], color=colour, lw=3, label=f"N = {n}") for n, colour in COLOURS.items()]
    others = [
        Line2D([], [], color="grey", lw=1, label="original"),
        Line2D([], [], color="black", marker="o", ls="", markerfacecolor="none", label="adapters read the input"),
        Line2D([], [], color="grey", marker="o", ls="", markeredgecolor="black", label="blocks in the stem"),
        Line2D([], [], color="black", ls=":", label="10% of the original"),
    ]
    return [*shapes, *numbers, *others]
