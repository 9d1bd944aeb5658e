"""Plan -> a picture in a file: the paper's figure 1(b), to scale.

For n = 3::

    x ─┬──────────────┬──────────────┐
     stem            C^2            C^3
       │ x_1          │ x_2          │ x_3
      g^1         ┌───┤          ┌───┤
       │          │  g^2         │  g^3
       ▼          ▼   ▼          ▼   ▼
      y_1 ───────(−) (+) ───────(−) (+) ─── head
                  └ F^1 ┘        └ F^2 ┘
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from pararealize.argument_types import typed_arguments
from pararealize.errors import OutputError, PlanError
from pararealize.figure import BOXES, FAINT, INK, LINE, STAGES, label, save_figure
from pararealize.table import count, quantity

from .actions import formula
from .plan import Plan, SegmentPlan, Window

__all__ = ["draw_plan"]

# All lengths are in inches. One column a segment; rows from the top: input, adapters, segments, sums, coarse blocks.
MARGIN = 0.35
TITLE = 0.85
ADAPTER = 0.62  # height of an adapter's box
BAR = 2.9  # height of the most expensive segment
BAR_LEAST = 0.92  # so that four lines of text fit
COARSE_LEAST = 0.64
HEAD = 1.15  # width of the head's box
RADIUS = 0.075
# of windows
GAP = 0.5  # between two of them
LABEL = 0.4  # above them, with their numbers
LINK = 0.45  # beside a row, for what leads to it
WIDEST = 15.0  # of a row
MOST_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the columns and rows of one window stand, and how large the picture and its text are."""

    n: int  # columns
    left: float  # of the first column
    pitch: float  # from one segment's middle to the next one's
    bar: float  # width of a segment
    font: float  # points
    narrow: bool  # whether there is no room for the names of values
    scale: float  # inches a unit of cost
    y_input: float
    y_adapter: float  # top edges of the rows
    y_bar: float
    y_sum: float
    y_coarse: float
    width: float
    height: float

    def middle(self, j: int) -> float:
        """The middle of segment ``j``'s column, ``j`` from 1."""
        return self.left + self.pitch * (j - 1) + self.bar / 2 + (self.pitch - self.bar) / 2

    def gap(self, j: int) -> float:
        """The middle of the gap between the bars of segments ``j`` and ``j + 1``."""
        return (self.middle(j) + self.middle(j + 1)) / 2

    @property
    def right(self) -> float:
        """Where the last column ends."""
        return self.left + self.pitch * self.n


@typed_arguments(OutputError, plan=PlanError)
def draw_plan(plan: Plan, path: str | Path, *, title: str = "") -> Path:
    """Draw the cut network into an SVG or PNG file, which appears only when it is complete.

    Windows stand side by side, in rows where there are many; of very many, the first and the last are drawn.

    The heights of segments and coarse blocks are proportional to their forward and backward cost, small ones excepted,
    which are as high as their text. A colour is a stage: segments whose outputs have one shape.

    Args:
        plan: the plan, of any ``n``.
        path: where to; what it ends in, ``.svg`` or ``.png``, is the format. An existing file is replaced.
        title: what stands above; the model's class name when left out.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    layout = _layout(plan)
    page = layout[0][1]
    figure = Figure(figsize=(page.width, page.height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, page.width)
    axes.set_ylim(0, page.height)
    axes.set_axis_off()
    _draw_title(axes, page, plan, title or label(plan.model))
    stages = list(dict.fromkeys(segment.y for segment in plan.segments))
    for (window, geometry), following in zip(layout, [*layout[1:], None], strict=True):
        if window.m == 1:
            _draw_input(axes, geometry, plan, window)
        else:
            _draw_begin(axes, geometry, plan, window)
        for j, segment in enumerate(window.segments, 1):
            if window.m == 1 or j > 1:
                _draw_adapter(axes, geometry, plan, window, j)
            several = len({s.device for s in plan.segments}) > 1
            _draw_segment(axes, geometry, segment, STAGES[stages.index(segment.y) % len(STAGES)], device=several)
        for j in range(1, window.n):
            _draw_coarse(axes, geometry, window, j)
        if following is None:
            _draw_head(axes, geometry, plan, window)
        else:
            _draw_end(axes, geometry, window, *following)
    return save_figure(figure, path)


def _layout(plan: Plan) -> list[tuple[Window, Geometry]]:
    """The windows that are drawn, in rows from left to right, and where they stand; of many, some are left out."""
    windows, several = plan.windows, len(plan.windows) > 1
    base = _geometry(plan)
    if not several:
        return [(windows[0], base)]
    rows: list[list[Window]] = [[]]
    for window in windows:
        columns = sum(w.n for w in rows[-1]) + window.n
        if rows[-1] and columns * base.pitch + len(rows[-1]) * GAP > WIDEST:
            rows.append([])
        rows[-1].append(window)
    if len(rows) > MOST_ROWS:
        rows = [*rows[: MOST_ROWS - 1], rows[-1]]
    ends = [sum(w.n for w in row) * base.pitch + (len(row) - 1) * GAP for row in rows]
    ends[-1] += 0.3 + HEAD - LINK
    width = max(2 * MARGIN + LINK + max(ends) + LINK, 4.6)
    band = base.y_input + LABEL
    height = band * len(rows) + TITLE
    placed = []
    for number, row in enumerate(rows, 1):
        left, below = MARGIN + LINK, band * (len(rows) - number)
        for window in row:
            geometry = replace(
                base, n=window.n, left=left, width=width, height=height, y_input=base.y_input + below,
                y_adapter=base.y_adapter + below, y_bar=base.y_bar + below, y_sum=base.y_sum + below,
                y_coarse=base.y_coarse + below,
            )  # fmt: skip
            placed.append((window, geometry))
            left = geometry.right + GAP
    return placed


def _geometry(plan: Plan) -> Geometry:
    n = plan.n if len(plan.windows) == 1 else max(min(len(plan.segments), 7), plan.n)
    pitch = 2.2 if n == 1 else 1.5 if n <= 6 else 1.12 if n <= 14 else 0.86
    most = max(segment.cost for segment in plan.segments)
    scale = BAR / most if most else 0.0
    coarse = max((max(COARSE_LEAST, scale * block.cost) for block in plan.coarse_blocks), default=0.0)
    y_coarse = MARGIN + coarse
    y_sum = y_coarse + 0.38 if plan.n > 1 else MARGIN + 0.35
    y_bar = y_sum + 0.36 + BAR
    y_adapter = y_bar + 0.32 + ADAPTER
    y_input = y_adapter + 0.3
    bar = pitch * (0.76 if n <= 14 else 0.8)
    return Geometry(
        n=n, left=MARGIN, pitch=pitch, bar=bar, font=8.5 if n <= 6 else 7.2 if n <= 14 else 6.0, narrow=n > 14,
        scale=scale,
        y_input=y_input, y_adapter=y_adapter, y_bar=y_bar, y_sum=y_sum, y_coarse=y_coarse,
        width=max(2 * MARGIN + n * pitch + 0.3 + HEAD, 4.6), height=y_input + TITLE,
    )  # fmt: skip


def _box(axes: Axes, x: float, top: float, width: float, height: float, fill: str, edge: str) -> None:
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch((x, top - height), width, height, boxstyle=style, facecolor=fill, edgecolor=edge, linewidth=1)
    )


def _text(axes: Axes, x: float, y: float, text: str, size: float, **settings: object) -> None:
    defaults: dict[str, object] = {"ha": "center", "va": "center", "color": INK}
    axes.text(x, y, text, fontsize=size, **(defaults | settings))  # type: ignore[arg-type]


def _lines(axes: Axes, x: float, top: float, lines: Sequence[str], size: float) -> None:
    """Lines of text below each other, the first one larger: it is a name."""
    y = top - 0.16
    for i, line in enumerate(lines):
        _text(axes, x, y, line, size + 3 if i == 0 else size, color=INK if i == 0 else LINE)
        y -= (size + 3.4) / 72 if i else 0.19


def _path(axes: Axes, *points: tuple[float, float], arrow: bool = True, colour: str = LINE) -> None:
    """A line through the points, with an arrow's head at its end."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, color=colour, linewidth=1, solid_joinstyle="round", zorder=1)
    if arrow:
        style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7, "linewidth": 1}
        axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)


def _sign(axes: Axes, x: float, y: float, sign: str) -> None:
    axes.add_patch(Circle((x, y), RADIUS, facecolor="white", edgecolor=LINE, linewidth=1, zorder=3))
    half = RADIUS * 0.55
    axes.plot([x - half, x + half], [y, y], color=INK, linewidth=1, zorder=4)
    if sign == "+":
        axes.plot([x, x], [y - half, y + half], color=INK, linewidth=1, zorder=4)


def _draw_title(axes: Axes, geometry: Geometry, plan: Plan, title: str) -> None:
    top = geometry.height - 0.26
    windows = f", {quantity(len(plan.windows), 'window')}" if len(plan.windows) > 1 else ""
    _text(axes, MARGIN, top, f"{title}, n = {plan.n}{windows}", 13, ha="left", weight="bold")
    totals = plan.parameters
    parts = [f"{count(totals.original)} parameters"]
    if plan.n > 1:
        parts[0] += (
            f" + {count(totals.adapters)} in adapters + {count(totals.coarse)} in coarse blocks ({label(plan.coarse)})"
        )
        parts.append(f"predicted speed-up {plan.speedup:.2f}×")
    parts.append("heights: forward and backward cost")
    if geometry.width < 9.5:
        _text(axes, MARGIN, top - 0.21, parts[0], 7.5, ha="left", color=FAINT)
        _text(axes, MARGIN, top - 0.36, "; ".join(parts[1:]), 7.5, ha="left", color=FAINT)
    else:
        _text(axes, MARGIN, top - 0.25, "; ".join(parts), 8.5, ha="left", color=FAINT)


def _draw_input(axes: Axes, geometry: Geometry, plan: Plan, window: Window) -> None:
    """The input's line over all columns; it starts behind the stem where the adapters read the stem's output."""
    y = geometry.y_input
    first, last = geometry.middle(1), geometry.middle(geometry.n)
    _text(axes, first - 0.1, y, "$x$", 10, ha="right")
    _label_window(axes, geometry, plan, window)
    begin = 1 if geometry.n == 1 or plan.source == "input" else 2
    if begin == 1:
        _path(axes, (first, y), (last, y), arrow=False)
    else:
        _path(axes, (first, y), (first, geometry.y_adapter))
        edge = first + geometry.bar / 2
        y_stem = geometry.y_adapter - ADAPTER / 2  # out of the stem's side, up, and along to the others
        _path(axes, (edge, y_stem), (geometry.gap(1), y_stem), (geometry.gap(1), y), (last, y), arrow=False)
    for j in range(begin, geometry.n + 1):
        _path(axes, (geometry.middle(j), y), (geometry.middle(j), geometry.y_adapter))


def _label_window(axes: Axes, geometry: Geometry, plan: Plan, window: Window) -> None:
    """Which window it is, above its first column."""
    if len(plan.windows) > 1:
        y = geometry.y_input + LABEL / 2
        _text(axes, geometry.middle(1), y, f"window {window.m}", geometry.font + 1, color=FAINT)


def _draw_begin(axes: Axes, geometry: Geometry, plan: Plan, window: Window) -> None:
    """What the window before gives, over all columns of this one."""
    y, first, last = geometry.y_input, geometry.middle(1), geometry.middle(geometry.n)
    _label_window(axes, geometry, plan, window)
    _path(axes, (first, y), (last, y), arrow=False)
    _path(axes, (first, y), (first, geometry.y_bar))
    for j in range(2, geometry.n + 1):
        _path(axes, (geometry.middle(j), y), (geometry.middle(j), geometry.y_adapter))


def _draw_end(axes: Axes, geometry: Geometry, window: Window, after: Window, of_next: Geometry) -> None:
    """w_m, from the last sum up to where the next window begins; at the end of a row, from the next row's beginning."""
    y, start, turn = geometry.y_sum, geometry.middle(geometry.n), geometry.right + GAP / 2
    points = [(start + (RADIUS if geometry.n > 1 else 0), y), (turn, y)]
    if after.m == window.m + 1 and of_next.y_sum == y:
        _path(axes, *points, (turn, of_next.y_input), (of_next.middle(1), of_next.y_input), arrow=False)
        _text(axes, turn + 0.05, (y + geometry.y_bar) / 2, f"$w_{{{window.m}}}$", 9, ha="left")
        return
    _path(axes, *points)
    _text(axes, turn + 0.05, y, f"$w_{{{window.m}}}$", 9, ha="left")
    begin = of_next.left - LINK
    _path(axes, (begin + 0.3, of_next.y_input), (of_next.middle(1), of_next.y_input), arrow=False)
    _text(axes, begin + 0.27, of_next.y_input, f"$w_{{{after.m - 1}}}$", 9, ha="right")
    if after.m > window.m + 1:
        left_out = quantity(after.m - window.m - 1, "window")
        _text(axes, begin, of_next.y_input + LABEL * 0.75, f"… {left_out} between …", geometry.font + 1, ha="left")


def _draw_adapter(axes: Axes, geometry: Geometry, plan: Plan, window: Window, j: int) -> None:
    x, top = geometry.middle(j), geometry.y_adapter
    name, row = ("stem", plan.stem) if j == 1 else (formula(window.adapters[j - 2].name), window.adapters[j - 2])
    _box(axes, x - geometry.bar / 2, top, geometry.bar, ADAPTER, *BOXES["adapter"])
    lines = [name, str(window.segments[j - 1].x), *([count(row.parameters)] if row.parameters else [])]
    _lines(axes, x, top, lines, geometry.font)
    _path(axes, (x, top - ADAPTER), (x, geometry.y_bar))
    if not geometry.narrow:
        _text(axes, x + 0.05, (top - ADAPTER + geometry.y_bar) / 2 + 0.03, _value("x", window, j), 9, ha="left")


def _value(letter: str, window: Window, j: int) -> str:
    """The name of a value at segment j, such as x_j."""
    m = window.segments[0].m
    return f"${letter}_{{{f'{m},{j}' if m else j}}}$"


def _draw_segment(
    axes: Axes, geometry: Geometry, segment: SegmentPlan, colour: tuple[str, str], *, device: bool
) -> None:
    j = segment.j
    x, top = geometry.middle(j), geometry.y_bar
    height = max(BAR_LEAST, geometry.scale * segment.cost)
    _box(axes, x - geometry.bar / 2, top, geometry.bar, height, *colour)
    lines = [formula(segment.name), quantity(segment.blocks, "block"), count(segment.parameters)]
    room = height - BAR_LEAST
    if room > 0.2 and segment.device and device:
        lines.append(label(segment.device))
        room -= 0.16
    _lines(axes, x, top, lines, geometry.font)
    bottom = top - height
    _text(axes, x, bottom + 0.12, f"→ {segment.y}", geometry.font, color=LINE)
    below = bottom - geometry.y_sum - 0.25
    letters = geometry.font * 0.0085  # inches that a letter takes
    names, style = (segment.first_block, segment.last_block), {"rotation": 90, "color": colour[1]}
    if inside := _names(*names, letters=int(room / letters)):
        _text(axes, x, bottom + 0.2 + room / 2, _label(inside), geometry.font, **style)
    elif beside := _names(*names, letters=int(below / letters)):
        _text(axes, x + 0.06, bottom - 0.1, _label(beside), geometry.font, **style, va="top", ha="left")
    _path(axes, (x, bottom), (x, geometry.y_sum + (RADIUS if j > 1 else 0)), arrow=j > 1)


def _names(first: str, last: str, letters: int) -> str:
    """``first – last`` in lines of at most so many letters, without the parents they share if need be, or nothing."""
    heads, tails = first.split("."), last.split(".")
    while len(heads) > 1 and len(tails) > 1 and heads[0] == tails[0] and not heads[1].isdigit():
        heads, tails = heads[1:], tails[1:]
    head, tail = ".".join(heads), ".".join(tails)
    choices = [first, tail]
    if first != last:
        in_a_line = f"{first} – {last}", f"{first} – {tail}", f"{head} – {tail}"
        choices = [*in_a_line, f"{first} –\n{last}", f"{head} –\n{tail}"]
    return next((text for text in choices if max(map(len, text.split("\n"))) <= letters), "")


def _label(names: str) -> str:
    return "\n".join(map(label, names.split("\n")))


def _draw_coarse(axes: Axes, geometry: Geometry, window: Window, j: int) -> None:
    """The minus sign between columns j and j + 1, F^j below, and the plus sign under segment j + 1."""
    block, adapter_edge, edge = window.coarse_blocks[j - 1], BOXES["adapter"][1], BOXES["coarse"][1]
    middle, gap, next_middle = geometry.middle(j), geometry.gap(j), geometry.middle(j + 1)
    y, top = geometry.y_sum, geometry.y_coarse
    y_x = geometry.y_bar + 0.13  # where x_{j+1} leaves for the minus sign
    _path(axes, (next_middle, y_x), (gap, y_x), (gap, y + RADIUS), colour=adapter_edge)
    _path(axes, (middle + (RADIUS if j > 1 else 0), y), (gap - RADIUS, y))
    _sign(axes, gap, y, "-")
    height = max(COARSE_LEAST, geometry.scale * block.cost)
    left = next_middle - geometry.bar / 2
    _box(axes, left, top, geometry.bar, height, *BOXES["coarse"])
    kind = label(f"{block.units} × {block.kind}" if block.units else block.kind)
    _lines(axes, next_middle, top, [formula(block.name), kind, count(block.parameters)], geometry.font)
    y_in = top - 0.14
    _path(axes, (gap, y - RADIUS), (gap, y_in), (left, y_in), colour=edge)
    _path(axes, (next_middle, top), (next_middle, y - RADIUS), colour=edge)
    _sign(axes, next_middle, y, "+")
    if not geometry.narrow:
        _text(axes, gap - 0.04, y - 0.2, _value("r", window, j), 9, ha="right")


def _draw_head(axes: Axes, geometry: Geometry, plan: Plan, window: Window) -> None:
    y = geometry.y_sum
    start = geometry.middle(geometry.n)
    left = start + geometry.pitch / 2 + 0.2
    _path(axes, (start + (RADIUS if geometry.n > 1 else 0), y), (left, y))
    if len(plan.windows) > 1 or geometry.n > 1:
        name = f"$w_{{{window.m}}}$" if len(plan.windows) > 1 else f"$z_{{{geometry.n}}}$"
        _text(axes, (start + left) / 2, y + 0.11, name, 9)
    _box(axes, left, y + ADAPTER / 2, HEAD, ADAPTER, *BOXES["adapter"])
    lines = ["head"] + ([count(plan.head.parameters)] if plan.head.parameters else [])
    _lines(axes, left + HEAD / 2, y + ADAPTER / 2 - 0.04, lines, geometry.font)
