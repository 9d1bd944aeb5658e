"""Charts: points stand where their values say, ticks are round, and what cannot be drawn is left out."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pararealize.reports.charts import HEIGHT, Chart, Series, ticks

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)


def chart(*points: tuple[float, float], **changes: object) -> Chart:
    return Chart(title="t", x="x", y="y", series=(Series(name="one", points=points),), **changes)  # type: ignore[arg-type]


def test_places_are_to_scale() -> None:
    drawn = chart((0, 0.0), (1, 5.0), (4, 10.0))
    xs, ys = [mark.x for mark in drawn.marks], [mark.y for mark in drawn.marks]
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(0.25, abs=1e-3)
    assert (ys[1] - ys[0]) / (ys[2] - ys[0]) == pytest.approx(0.5, abs=1e-3)
    assert ys[0] > ys[2]  # upwards is more
    assert drawn.lines[0].points.count(",") == 3


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    ys = [mark.y for mark in chart((0, 0.01), (1, 0.1), (2, 1.0), log=True).marks]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.1)
    assert [text for _, text in chart((0, 1e-8), (1, 1.0), log=True).y_ticks][:2] == ["1e-08", "1e-06"]
    assert chart((0, 0.0), (1, 1.0), log=True).marks  # zero is drawn at the least


def test_what_is_not_finite_is_left_out_and_said_in_the_table() -> None:
    drawn = chart((0, math.inf), (1, 2.0), (2, math.nan), names=("a", "b", "c"))
    assert [mark.text for mark in drawn.marks] == ["one: x b, y 2"]
    assert drawn.rows == (("a", "not finite"), ("b", "2"), ("c", "not finite"))
    assert chart((0, math.nan)).is_empty
    assert chart().is_empty


def test_several_points_at_one_place_are_rows_of_their_own() -> None:
    two = Chart(
        title="t", x="x", y="y", percent=True,
        series=(Series(name="a", points=((1, 0.5), (1, 0.25))), Series(name="b", points=((1, 1.0), (2, 0.0)))),
    )  # fmt: skip
    assert two.rows == (("1", "50 %", "100 %"), ("1", "25 %", None), ("2", None, "0 %"))


def test_many_points_are_a_line_alone() -> None:
    long = chart(*((i, float(i)) for i in range(100)))
    assert (len(long.lines), long.marks) == (1, ())


@settings(max_examples=40)
@example(low=10303207.805286974, span=6.3e-9, most=7)  # ticks closer than floats are
@given(low=NUMBERS, span=st.floats(1e-9, 1e12), most=st.integers(2, 9))
def test_ticks_are_within_the_axis_and_not_too_many(low: float, span: float, most: int) -> None:
    high = low + span
    places = ticks(low, high, most=most)
    slack = 1e-6 * (abs(low) + span)
    assert len(places) <= most + 2
    assert all(low - slack <= place <= high + slack for place in places)
    assert places == sorted(set(places))


@settings(max_examples=40)
@given(points=st.lists(st.tuples(NUMBERS, st.floats(allow_nan=True)), max_size=6), log=st.booleans())
def test_everything_stands_within_the_plot(points: list[tuple[float, float]], log: bool) -> None:
    drawn = chart(*points, log=log)
    assert all(0 <= mark.x <= 100 and 0 <= mark.y <= HEIGHT for mark in drawn.marks)
    assert all(-1 <= y <= HEIGHT + 1 for y, _ in drawn.y_ticks)
    assert all(-1 <= x <= 101 for x, _ in drawn.x_ticks)
