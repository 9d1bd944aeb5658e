"""Groups of runs -> pictures: errors against costs of one window, and errors with one window and with several."""

from __future__ import annotations

import statistics
from collections import Counter
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
MOST_COLUMNS = 3  # panels beside one another
LEAST_SHARE = 1e-3  # what costs nothing stands here on the logarithmic axis


def draw(every: Sequence[Group], path: Path) -> None:
    """Mean errors with their standard deviations over the cost of the coarse blocks; the original as a grey line."""
    shown = [group for group in every if not (group.method.ablation or group.method.windowed)]
    kinds = Counter(data for data, _ in {(group.data, group.method.kind) for group in shown if group.method.n})
    windowed = {group.data for group in every if group.method.windowed}
    shown = [group for group in shown if kinds[group.data] > 1 or group.data not in windowed]  # see draw_windows
    if not shown:
        return
    data = list(dict.fromkeys(group.data for group in shown))
    families = [family for family in FAMILIES if any(group.family == family for group in shown)]
    figure = Figure(figsize=(3.3 * len(families), 3.6 * len(data) + 0.5), layout="constrained")
    panels = figure.subplots(len(data), len(families), squeeze=False)
    for line, name in zip(panels, data, strict=True):
        for axes, family in zip(line, families, strict=True):
            _panel(axes, [group for group in shown if (group.data, group.family) == (name, family)])
            axes.set_title(f"{FAMILIES[family].title}, {name}", fontsize=9)
            axes.set_xlabel("coarse FLOPs of the original's")
        line[0].set_ylabel("test error, %")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=6, fontsize=8)
    save_figure(figure, path)


def draw_windows(every: Sequence[Group], path: Path) -> None:
    """Mean errors over N, one window and several, of families that were tried with several; a panel each."""
    tried = list(dict.fromkeys((group.data, group.family) for group in every if group.method.windowed))
    shown = [group for group in every if not group.method.ablation and group.method.stem_blocks in (0, "auto")]
    columns = min(max(len(tried), 1), MOST_COLUMNS)
    rows = -(-len(tried) // columns)
    figure = Figure(figsize=(max(3.8 * columns, 7.6), 3.5 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)[: len(tried)]
    for unused in list(grid.flat)[len(tried) :]:
        unused.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, (data, family) in zip(panels, tried, strict=True):
        handles |= _window_panel(axes, [group for group in shown if (group.data, group.family) == (data, family)])
        axes.set_title(f"{FAMILIES[family].title}, {data}", fontsize=9)
    for row in grid:
        row[0].set_ylabel("test error, %")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, path)


def _window_panel(axes: Any, here: Sequence[Group]) -> dict[str, Any]:
    """A line a kind: one window dashed, several drawn through; what each line is called."""
    handles: dict[str, Any] = {}
    lines: dict[tuple[str, str, int | str, bool], list[Group]] = {}
    for group in sorted(here, key=lambda group: group.method.n):
        method = group.method
        if not method.n:
            handles["original"] = _original(axes, *_mean(group))
            continue
        front = method.stem_blocks == "auto"
        lines.setdefault((method.kind, method.source, method.windows, front), []).append(group)
    several = {kind for kind, _, windows, _ in lines if windows != 1}
    for (kind, source, windows, front), groups in lines.items():
        if kind not in (*several, "paper"):
            continue
        name = f"{kind}, {_count(windows)}{', first blocks in sequence' if front else ''}"
        if source == "input":
            name = "the paper's construction" if kind == "paper" else f"{name}, adapters read the input"
        handles[name] = axes.errorbar(
            [group.method.n for group in groups], *zip(*map(_mean, groups), strict=True), capsize=2, lw=1.2, ms=5,
            ls=":" if front else "--" if windows == 1 else "-", color=WINDOW_COLOURS.get((kind, windows), "tab:brown"),
            marker=MARKS.get(kind, "x"), markerfacecolor="none" if source == "input" else None,
        )  # fmt: skip
    numbers = sorted({group.method.n for groups in lines.values() for group in groups})
    axes.set_xticks(numbers, list(map(str, numbers)))
    low, high = axes.get_ylim()
    if low < high / 2:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("N, segments of a window")
    axes.grid(visible=True, alpha=0.3)
    return handles


def _count(windows: int | str) -> str:
    return "one window" if windows == 1 else "windows that are free" if windows == "auto" else f"{windows} windows"


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
