"""A Timeline -> a picture in a file: a row a rank, time to the right, messages as arrows.

What an action is can be told without colour: a segment is a full bar, a coarse block a full dark one, an adapter a low
one, stem and head are dotted; the backward pass is hatched.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pararealize.argument_types import typed_arguments
from pararealize.errors import OutputError, PlanError
from pararealize.figure import BARS, FAINT, INK, LINE, PAPER, label, save_figure
from pararealize.table import duration, from_to, quantity, share, time_unit

from .actions import Action, formula
from .timeline import Timeline

__all__ = ["draw_timeline"]

# inches
WIDTH = 12.5
ROW = 0.46
LEFT, RIGHT, TOP, BOTTOM = 0.95, 0.2, 0.8, 0.85
LETTER = 0.065  # of a bar's label

# height of the bar in rows and hatch, by the kind of action
STYLES = {
    "fine": (0.78, ""), "coarse": (0.78, ""), "adapter": (0.4, ""), "relax": (0.4, ""), "stem": (0.78, ".."),
    "head": (0.78, ".."),
}  # fmt: skip
NAMES = {"fine": "segment $g^j$", "coarse": "coarse block $F^j$", "adapter": "adapter $C^j$", "head": "stem, head"}
OF_LAYERS = {"fine": "layer, last sweep", "coarse": "coarse step", "relax": "relaxation", "head": "stem, head"}
BACKWARD_HATCH = "///"


@typed_arguments(OutputError, timeline=PlanError)
def draw_timeline(timeline: Timeline, path: str | Path, *, title: str = "") -> Path:
    """Draw a timeline into an SVG or PNG file, which appears only when it is complete.

    Args:
        timeline: simulated or recorded.
        path: where to; what it ends in, ``.svg`` or ``.png``, is the format. An existing file is replaced.
        title: what stands above; the model's class name when left out.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    height = TOP + ROW * timeline.ranks + BOTTOM
    figure = Figure(figsize=(WIDTH, height))
    box = (LEFT / WIDTH, BOTTOM / height, (WIDTH - LEFT - RIGHT) / WIDTH, ROW * timeline.ranks / height)
    axes = figure.add_axes(box)
    end = max((action.end for action in timeline.actions), default=0.0) or 1.0
    unit, scale = time_unit(end)
    axes.set_xlim(0, end * scale)
    axes.set_ylim(timeline.ranks - 0.5, -0.5)
    for action in timeline.actions:
        if action.kind == "transfer":
            _arrow(axes, action, scale)
        else:
            _bar(axes, action, scale, inches=(WIDTH - LEFT - RIGHT) / end)
    axes.set_yticks(range(timeline.ranks), [_row(timeline, rank) for rank in range(timeline.ranks)], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=LINE)
    axes.set_xlabel(unit, fontsize=8, color=LINE, loc="right", labelpad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.set_facecolor(PAPER)
    heading = f"{title or label(timeline.model)}, n = {timeline.n}"
    figure.text(LEFT / WIDTH, 1 - 0.28 / height, heading, fontsize=13, color=INK, weight="bold", va="center")
    figure.text(LEFT / WIDTH, 1 - 0.55 / height, _summary(timeline), fontsize=8.5, color=FAINT, va="center")
    figure.legend(handles=_legend(timeline), loc="lower left", bbox_to_anchor=(LEFT / WIDTH, 0.02), ncols=7, fontsize=8,
                  frameon=False, handlelength=2.4, handleheight=1.3, columnspacing=1.4)  # fmt: skip
    return save_figure(figure, path)


def _summary(timeline: Timeline) -> str:
    ranks = quantity(timeline.ranks, "device")
    gain = f"speed-up {timeline.speedup:.2f}×, efficiency {share(timeline.efficiency)}"
    serial = f"the original's own work {duration(timeline.serial)}"
    return f"one {timeline.origin} step on {ranks}: {duration(timeline.step)}; {serial}; {gain}"


def _row(timeline: Timeline, rank: int) -> str:
    segments = timeline.segments(rank)
    several = any(action.m for action in timeline.actions)  # windows, in each of which a rank may have others
    return f"rank {rank}: {from_to(segments)}" if segments and not several else f"rank {rank}"


def _bar(axes: Axes, action: Action, scale: float, *, inches: float) -> None:
    """One action; its name where it fits."""
    height, hatch = STYLES[action.kind]
    forward, backward, edge, colour = BARS[action.kind]
    back = action.direction == "backward"
    fill = backward if back else forward
    corner = (action.start * scale, action.rank - height / 2)
    hatch += BACKWARD_HATCH if back else ""
    axes.add_patch(Rectangle(corner, action.seconds * scale, height, facecolor=fill, edgecolor=edge, hatch=hatch,
                             linewidth=0.6, zorder=2))  # fmt: skip
    if action.seconds * inches > LETTER * (len(action.name) + 1):
        middle = (action.start + action.end) / 2 * scale
        plate = {"facecolor": fill, "edgecolor": "none", "pad": 0.8}
        axes.text(middle, action.rank, formula(action.name), fontsize=7.5, color=colour, ha="center", va="center",
                  zorder=4, bbox=plate if back else None)  # fmt: skip


def _arrow(axes: Axes, action: Action, scale: float) -> None:
    """A message, from the row that sends to the row that receives."""
    assert action.to is not None
    down = 1 if action.to > action.rank else -1
    begin = (action.start * scale, action.rank + down * 0.3)
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.7, "mutation_scale": 6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (action.end * scale, action.to - down * 0.36), begin, arrowprops=style, zorder=5)


def _legend(timeline: Timeline) -> list[Patch]:
    """A patch a kind, one for the backward pass, and a word on arrows."""
    layered = any(action.kind == "relax" for action in timeline.actions)
    patches = [
        Patch(facecolor=BARS[kind][0], edgecolor=BARS[kind][2], hatch=STYLES[kind][1], linewidth=0.6, label=name)
        for kind, name in (OF_LAYERS if layered else NAMES).items()
    ]
    hatched = Patch(facecolor="white", edgecolor=LINE, hatch=BACKWARD_HATCH, linewidth=0.6, label="hatched: backward")
    label = f"arrow: a message; {'relaxations' if layered else 'adapters'} are low bars"
    arrow = Patch(facecolor="none", edgecolor="none", label=label)
    return [*patches, hatched, arrow]
