"""Series of points -> Chart: where lines, marks and ticks stand, in per cent of the width and pixels of the height.

A chart is as wide as its page, and its text has one size whatever that is: horizontal places are per cent, vertical
ones pixels. Series can be told without colour: each has a mark and a dash pattern of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["HEIGHT", "Chart", "Line", "Mark", "Series", "ticks"]

HEIGHT = 240.0  # pixels of the plot
INSET = 2.0  # per cent of the width, and pixels twice as many of the height, that stay free at the edges
LOOKS = 6  # marks, dash patterns and colours of the style sheet
MOST_MARKS = 60  # of a series; a longer one is a line alone
MOST_TITLES = 9  # of places on the horizontal axis
MOST = 1e150  # what is not finite, or larger, is not drawn
LEAST = 1e-16  # what zero is drawn at on a logarithmic axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one kind, in order.

    Attributes:
        name: what they are.
        points: x and y; those that are not finite are left out.
        line: join them.
        marked: mark each, where they are not too many.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    line: bool = True
    marked: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A polyline within a plot that is 1,000 wide and high."""

    look: int
    points: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A mark: x in per cent, y in pixels, and what it says when it is pointed at."""

    look: int
    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Series over one horizontal axis.

    Attributes:
        title: above it.
        description: what it shows, for those who cannot see it.
        x: what is to the right.
        y: what is upwards.
        series: the points.
        log: whether y is logarithmic.
        percent: whether values of y are shares of 1, shown in per cent.
        names: what the places 0, 1, … of x are called, where they are no numbers.

    Example:
        >>> from pararealize.reports.charts import Chart, Series
        >>> chart = Chart(title="loss", x="epoch", y="loss", series=(Series(name="test", points=((1, 2.0), (2, 1.0))),))
        >>> [text for _, text in chart.y_ticks]
        ['1', '1.2', '1.4', '1.6', '1.8', '2']
        >>> chart.rows
        (('1', '2'), ('2', '1'))
    """

    kind: ClassVar[str] = "chart"

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    description: str = ""
    log: bool = False
    percent: bool = False
    names: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be drawn."""
        return not any(self._finite(series) for series in self.series)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines that join points."""
        x_of, y_of = self._scales()

        def place(x: float, y: float) -> str:
            return f"{10 * x_of(x):.1f},{1000 * y_of(y) / HEIGHT:.1f}"

        joined = ((i, self._finite(series)) for i, series in enumerate(self.series) if series.line)
        return tuple(
            Line(look=i % LOOKS, points=" ".join(place(x, y) for x, y in points))
            for i, points in joined
            if len(points) > 1
        )

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks, one a point."""
        x_of, y_of = self._scales()
        marked = ((i, series, self._finite(series)) for i, series in enumerate(self.series) if series.marked)
        return tuple(
            Mark(look=i % LOOKS, x=round(x_of(x), 2), y=round(y_of(y), 1), text=self._words(series, x, y))
            for i, series, points in marked
            if len(points) <= MOST_MARKS or not series.line
            for x, y in points
        )

    @property
    def x_ticks(self) -> tuple[tuple[float, str], ...]:
        """Places in per cent, and what stands there."""
        x_of, _ = self._scales()
        if self.names:
            step = math.ceil(len(self.names) / MOST_TITLES)
            return tuple((round(x_of(i), 2), self.names[i]) for i in range(0, len(self.names), step))
        low, high = self._range(0)
        return tuple((round(x_of(value), 2), f"{value:g}") for value in ticks(low, high, most=6))

    @property
    def y_ticks(self) -> tuple[tuple[float, str], ...]:
        """Places in pixels from the top, and what stands there."""
        _, y_of = self._scales()
        low, high = self._range(1)
        values = _decades(low, high) if self.log else ticks(low, high, most=5)
        return tuple((round(y_of(value), 1), self._value(value)) for value in values)

    @property
    def legend(self) -> tuple[tuple[int, Series], ...]:
        """The look of each series."""
        return tuple((i % LOOKS, series) for i, series in enumerate(self.series))

    @property
    def rows(self) -> tuple[tuple[str | None, ...], ...]:
        """The same as a table: a row for each x, a column for each series; a line more for a second point there."""
        rows: list[tuple[str | None, ...]] = []
        for x in sorted({x for series in self.series for x, _ in series.points}):
            columns = [[y for at, y in series.points if at == x] for series in self.series]
            for i in range(max(map(len, columns))):
                cells = (self._value(ys[i]) if i < len(ys) else None for ys in columns)
                rows.append((self._place(x), *cells))
        return tuple(rows)

    def _finite(self, series: Series) -> list[tuple[float, float]]:
        least = LEAST if self.log else -math.inf
        return [(x, max(y, least)) for x, y in series.points if abs(x) < MOST and abs(y) < MOST]  # NaN is not

    def _range(self, axis: int) -> tuple[float, float]:
        """The least and the largest value; never the same."""
        values = [point[axis] for series in self.series for point in self._finite(series)]
        if axis == 0 and self.names:
            values += [-0.4, len(self.names) - 0.6]
        low, high = min(values, default=LEAST), max(values, default=1.0)
        if self.percent and axis == 1 and not self.log:
            low = min(low, 0.0)
        if low < high:
            return low, high
        return (low / 2, low * 2) if self.log and axis == 1 else (low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2)

    def _scales(self) -> tuple[_AxisScale, _AxisScale]:
        x, y = self._range(0), self._range(1)
        if self.log:
            y = math.log10(y[0]), math.log10(y[1])
        return _AxisScale(x, (INSET, 100 - INSET)), _AxisScale(y, (HEIGHT - 2 * INSET, 4 * INSET), log=self.log)

    def _value(self, value: float) -> str:
        if not math.isfinite(value):
            return "not finite"
        return f"{100 * value:.3g} %" if self.percent else f"{value:.4g}"

    def _place(self, x: float) -> str:
        return self.names[int(x)] if self.names and 0 <= x < len(self.names) else f"{x:g}"

    def _words(self, series: Series, x: float, y: float) -> str:
        return f"{series.name}: {self.x} {self._place(x)}, {self.y} {self._value(y)}"


class _AxisScale:
    """Values of an interval -> places of another one, linearly or by their logarithms."""

    def __init__(self, values: tuple[float, float], places: tuple[float, float], *, log: bool = False) -> None:
        self.values, self.places, self.log = values, places, log

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        share = (at - self.values[0]) / ((self.values[1] - self.values[0]) or 1.0)
        return self.places[0] + share * (self.places[1] - self.places[0])


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, both included: 1, 2 or 5 times a power of ten apart.

    Args:
        low: where the axis begins.
        high: where it ends.
        most: about how many.

    Example:
        >>> ticks(0, 9, most=5), ticks(0.1, 0.35, most=5)
        ([0.0, 2.0, 4.0, 6.0, 8.0], [0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return []
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next((factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most), 10 * power)
    if step < 4 * math.ulp(max(abs(low), abs(high))):  # steps too small for numbers of this size
        return []
    digits = max(0, 1 - math.floor(math.log10(step)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def _decades(low: float, high: float) -> Sequence[float]:
    """Powers of ten; with some of their multiples where there are few, and at most eight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 3, 5) if high < 10 * low else (1, 2, 5) if len(powers) < 4 else (1,)
    values = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
    return values[:: math.ceil(len(values) / 8)] if values else [low, high]
