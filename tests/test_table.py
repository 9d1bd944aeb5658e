"""The table printer and numbers as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pararealize.table import aligned, billions, count, duration, from_to, quantity, share, shortened, time_unit

ROWS = [("layer", "cost"), ("conv", "12"), ("a long name", "3456789")]


def test_words_stand_left_and_numbers_right():
    assert aligned(ROWS, "l").splitlines() == ["layer           cost", "conv              12", "a long name  3456789"]
    assert aligned(ROWS).splitlines() == ["      layer     cost", "       conv       12", "a long name  3456789"]
    assert aligned(ROWS, "rl").splitlines() == ["      layer  cost", "       conv  12", "a long name  3456789"]


def test_gap_and_least_widths():
    assert aligned([("a", "b"), ("1", "2")], gap=1, least=(3,)).splitlines() == ["  a b", "  1 2"]
    assert aligned([("a", "b")], gap=3, least=(0, 4)) == "a      b"


def test_missing_cells():
    rows = [("a", "b", "c"), ("1", None, None)]
    assert aligned(rows, "lll").splitlines() == ["a  b  c", "1"]
    assert aligned(rows, missing="–").splitlines() == ["a  b  c", "1  –  –"]


def test_the_last_column_of_words_gives_way():
    rows = [("part", "method", "error"), ("C2", "distilled, last layer solved", "0.25")]
    lines = aligned(rows, "ll", width=30).splitlines()
    assert lines == ["part  method             error", "C2    distilled, last …   0.25"]
    assert aligned(rows, "ll", width=200) == aligned(rows, "ll")
    assert "  …  " in aligned(rows, "ll", width=5)  # a column keeps one character, whatever the width


def test_rows_of_unequal_length_are_a_bug_of_ours():
    with pytest.raises(ValueError, match="argument 2"):
        aligned([("a", "b"), ("1",)])


@given(st.lists(st.tuples(*[st.text("abc µ", max_size=9)] * 4), min_size=1), st.text("lr", max_size=4))
def test_every_cell_stands_in_its_column(rows, columns):
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row, line in zip(rows, aligned(rows, columns).split("\n"), strict=True):
        at = 0
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            there = line.ljust(sum(widths) + 6)[at : at + width]
            assert there == (cell.ljust(width) if columns[i : i + 1] == "l" else cell.rjust(width))
            at += width + 2


def test_shortened():
    assert [shortened("abcdef", width) for width in (7, 6, 5, 1)] == ["abcdef", "abcdef", "abcd…", "…"]


@pytest.mark.parametrize(
    "number, expected",
    [
        (0, "0"), (999, "999"), (999.6, "1.0k"), (1000, "1.0k"), (41_249, "41.2k"), (999_949, "999.9k"),
        (999_951, "1.00M"), (10_351_044, "10.35M"), (999_995_001, "1.00G"), (2.5e9, "2.50G"), (3e12, "3.00T"),
    ],
)  # fmt: skip
def test_counts_as_people_write_them(number, expected):
    assert count(number) == expected


def test_quantities_and_runs():
    assert [quantity(number, "cut point") for number in (1, 2)] == ["1 cut point", "2 cut points"]
    assert [from_to(numbers) for numbers in ([], [3], [3, 4], range(1, 9))] == ["", "3", "3–4", "1–8"]


def test_billions_and_shares():
    assert (billions(0), billions(333_400_000)) == ("0.000", "0.333")
    assert (share(0.125), share(0.125, 1), share(0)) == ("12 %", "12.5 %", "0 %")


@pytest.mark.parametrize(
    "seconds, text", [(1.234, "1.23 s"), (0.0123, "12.3 ms"), (4e-6, "4 µs"), (0.0, "0 µs"), (1234.5, "1234 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds, unit", [(60, "s"), (1, "s"), (0.999, "ms"), (1e-3, "ms"), (9e-4, "µs"), (0, "µs")])
def test_units_of_time(seconds, unit):
    name, scale = time_unit(seconds)
    assert name == unit
    assert scale == {"s": 1, "ms": 1e3, "µs": 1e6}[unit]
