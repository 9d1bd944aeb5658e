"""Groups of runs -> pictures: errors against costs of one window, and errors with one window and with several."""

from __future__ import annotations

import itertools
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

__all__ = ["draw", "draw_windows"]

MARKS = {"linear": "o", "bottleneck": "s", "depthwise": "^", "block": "D", "paper": "P"}
COLOURS = {3: "tab:green", 6: "tab:orange", 12: "tab:red", 18: "tab:purple"}
WINDOW_COLOURS: dict[tuple[str, int | str], str] = {
    ("paper", 1): "tab:red", ("linear", 1): "tab:orange", ("bottleneck", 1): "tab:olive",
    ("linear", "auto"): "tab:blue", ("linear", 2): "tab:cyan", ("linear", 3): "tab:green",
    ("bottleneck", "auto"): "tab:purple",
}  # fmt: skip
LEAST_SHARE = 1e-3  # what costs nothing stands here on the logarithmic axis


def draw(every: Sequence[Group], path: Path) -> None:
    """Mean errors with their standard deviations over the cost of the coarse blocks; the original as a grey line."""
    shown = [group for group in every if not (group.method.ablation or group.method.windowed)]
    figure, panels = _panels(shown)
    for (_, axes), here in panels.items():
        _panel(axes, here)
        axes.set_xlabel("coarse FLOPs of the original's")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=6, fontsize=8)
    save_figure(figure, path)


def draw_windows(every: Sequence[Group], path: Path) -> None:
    """Mean errors over N, one window and several, of families that were tried with several."""
    tried = {(group.data, group.family) for group in every if group.method.windowed}
    shown = [g for g in every if (g.data, g.family) in tried and not (g.method.ablation or g.method.stem_blocks)]
    figure, panels = _panels(shown)
    handles: dict[str, Any] = {}
    for (_, axes), here in panels.items():
        handles |= _window_panel(axes, here)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, path)


def _panels(shown: Sequence[Group]) -> tuple[Figure, dict[tuple[str, Any], list[Group]]]:
    """A line of panels a data set, each with the groups of one family; the error is the vertical axis of all."""
    lines = {
        data: [f for f in FAMILIES if any((g.data, g.family) == (data, f) for g in shown)] for data in _data(shown)
    }
    most = max(map(len, lines.values()))
    figure = Figure(figsize=(max(3.3 * most, 6.6), 3.6 * len(lines) + 0.5), layout="constrained")
    grid = figure.subplots(len(lines), most, squeeze=False)
    panels = {}
    for axes_of_line, (data, families) in zip(grid, lines.items(), strict=True):
        for axes, family in itertools.zip_longest(axes_of_line, families):
            if family is None:
                axes.set_visible(False)
                continue
            axes.set_title(f"{FAMILIES[family].title}, {data}", fontsize=9)
            panels[data, axes] = [group for group in shown if (group.data, group.family) == (data, family)]
        axes_of_line[0].set_ylabel("test error, %")
    return figure, panels


def _data(shown: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(group.data for group in shown))


def _window_panel(axes: Any, here: Sequence[Group]) -> dict[str, Any]:
    """A line a kind: one window dashed, several drawn through; what each line is called."""
    handles: dict[str, Any] = {}
    lines: dict[tuple[str, str, int | str], list[Group]] = {}
    for group in sorted(here, key=lambda group: group.method.n):
        method = group.method
        if not method.n:
            handles["original"] = _original(axes, *_mean(group))
            continue
        lines.setdefault((method.kind, method.source, method.windows), []).append(group)
    several = {kind for kind, _, windows in lines if windows != 1}
    for (kind, source, windows), groups in lines.items():
        if kind not in (*several, "paper"):
            continue
        name = f"{kind}, from the {source}" if windows == 1 else f"{kind}, {windows} windows"
        name = f"the paper's: {name}" if (kind, source) == ("paper", "input") else name
        handles[name] = axes.errorbar(
            [group.method.n for group in groups], *zip(*map(_mean, groups), strict=True), capsize=2, lw=1.2, ms=5,
            ls="--" if windows == 1 else "-", color=WINDOW_COLOURS.get((kind, windows), "tab:brown"),
            marker=MARKS.get(kind, "x"), markerfacecolor="none" if source == "input" else None,
        )  # fmt: skip
    numbers = sorted({group.method.n for groups in lines.values() for group in groups})
    axes.set_xticks(numbers, list(map(str, numbers)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("N, segments of a window")
    axes.grid(visible=True, alpha=0.3)
    return handles


def _original(axes: Any, mean: float, deviation: float) -> Any:
    axes.axhspan(mean - deviation, mean + deviation, color="grey", alpha=0.2, lw=0)
    return axes.axhline(mean, color="grey", lw=1)


def _panel(axes: Any, here: Sequence[Group]) -> None:
    for group in here:
        mean, deviation = _mean(group)
        if not group.method.n:
            _original(axes, mean, deviation)
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
