"""A Timeline -> Lanes: a row a rank, bars in per cent of the width and arrows between rows, to scale.

What an action is can be told without colour: a coarse block is dark, an adapter low, stem and head dotted; the backward
pass is hatched. Every bar has its name and its time as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pararealize.plan.actions import Action
from pararealize.plan.timeline import Timeline
from pararealize.table import duration, from_to, time_unit

from .charts import ticks

__all__ = ["ROW", "ZOOMS", "Arrow", "Bar", "Lanes", "lanes_of"]

ROW = 34.0  # pixels of a row
HEIGHTS = {"adapter": 14.0, "relax": 14.0}  # of bars; others are higher
HIGH = 24.0
WIDTH = 720.0  # pixels that a timeline has at least
LETTER = 7.5  # of a label, in pixels
ZOOMS = (1, 2, 4, 8, 16)
MOST_BARS = 6000  # that a page shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One action: x and width in per cent, y and height in pixels.

    ``zoom`` is the first of :data:`ZOOMS` at which the name fits, 0 for none.
    """

    x: float
    width: float
    y: float
    height: float
    kind: str
    backward: bool
    name: str
    zoom: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """A message from one row to another: x in per cent, y in pixels."""

    x: float
    y: float
    to_x: float
    to_y: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """A timeline as a figure.

    Attributes:
        title: above it.
        description: what it shows, for those who cannot see it.
        rows: the name of each rank.
        bars: what ranks compute.
        arrows: messages.
        x_ticks: places in per cent, and the time there.
        kinds: those kinds of actions that there are, with their names.
        left_out: how many bars are too many to be shown.
    """

    kind: ClassVar[str] = "lanes"

    title: str
    description: str
    rows: tuple[str, ...]
    bars: tuple[Bar, ...]
    arrows: tuple[Arrow, ...]
    x_ticks: tuple[tuple[float, str], ...]
    kinds: tuple[tuple[str, str], ...]
    left_out: int = 0

    @property
    def height(self) -> float:
        """Pixels of all rows."""
        return ROW * len(self.rows)


NAMES = {
    "fine": "segment g", "coarse": "coarse block F", "adapter": "adapter C", "relax": "relaxation", "stem": "stem",
    "head": "head",
}  # fmt: skip


def lanes_of(timeline: Timeline, *, title: str, end: float) -> Lanes:
    """The figure of a timeline.

    Args:
        timeline: simulated or recorded.
        title: above it.
        end: seconds at the right edge, so that several timelines have one scale.
    """
    start = min((action.start for action in timeline.actions), default=0.0)
    end = end or 1.0
    computed = [action for action in timeline.actions if action.kind != "transfer"]
    shown = sorted(computed, key=lambda action: -action.seconds)[:MOST_BARS]
    kept = set(map(id, shown))
    messages = [action for action in timeline.actions if action.kind == "transfer"][:MOST_BARS]
    unit, scale = time_unit(end)
    places = ticks(0, end * scale, most=8)
    present = {action.kind for action in computed}
    rows = "One row" if timeline.ranks == 1 else f"One row for each of {timeline.ranks} ranks"
    return Lanes(
        title=title,
        description=f"{rows}, time to the right, from 0 to {duration(end)}. The same is in the table of ranks below.",
        rows=tuple(_row(timeline, rank) for rank in range(timeline.ranks)),
        bars=tuple(_bar(action, start, end) for action in computed if id(action) in kept),
        arrows=tuple(_arrows(messages, start, end)),
        x_ticks=tuple((round(100 * value / (end * scale), 3), f"{value:g} {unit}") for value in places),
        kinds=tuple((kind, name) for kind, name in NAMES.items() if kind in present),
        left_out=len(computed) - len(shown),
    )


def _row(timeline: Timeline, rank: int) -> str:
    segments = timeline.segments(rank)
    several = any(action.m for action in timeline.actions)  # windows, in each of which a rank may have others
    return f"rank {rank}: {from_to(segments)}" if segments and not several else f"rank {rank}"


def _bar(action: Action, start: float, end: float) -> Bar:
    width = 100 * action.seconds / end
    height = HEIGHTS.get(action.kind, HIGH)
    needed = LETTER * (len(str(action)) + 1)
    fitting = (zoom for zoom in ZOOMS if zoom * WIDTH * width / 100 > needed)
    when = f"from {duration(action.start - start)}, {duration(action.seconds)}" if action.seconds else "no time"
    return Bar(
        x=round(100 * (action.start - start) / end, 4),
        width=round(width, 4),
        y=ROW * action.rank + (ROW - height) / 2,
        height=height,
        kind=action.kind,
        backward=action.direction == "backward",
        name=str(action),
        zoom=next(fitting, 0),
        text=f"{action}: {NAMES[action.kind]}, {action.direction}, on rank {action.rank}, {when}",
    )


def _arrows(messages: list[Action], start: float, end: float) -> Iterator[Arrow]:
    for action in messages:
        assert action.to is not None
        down = 1 if action.to > action.rank else -1
        yield Arrow(
            x=round(100 * (action.start - start) / end, 4),
            y=ROW * (action.rank + 0.5 + 0.3 * down),
            to_x=round(100 * (action.end - start) / end, 4),
            to_y=ROW * (action.to + 0.5 - 0.36 * down),
            text=f"{action}: message from rank {action.rank} to {action.to}, {duration(action.seconds)}",
        )
