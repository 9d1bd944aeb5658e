"""Runge-Kutta tables: what they check on construction, and that the orders they claim are those that are observed."""

import itertools
import json
import math
from fractions import Fraction
from importlib import resources

import numpy as np
import pytest

from pararealize.errors import TableauError
from pararealize.restacking.tableaux import SCHEMES, Surd, Tableau, rooted_trees, stacked_euler, tableau, verner

HALF = Fraction(1, 2)
TABLES = [*map(tableau, SCHEMES), verner(9)]


def long(value: int | Fraction | Surd | float) -> np.longdouble:
    """A coefficient in the machine's longest floating-point numbers."""
    exact = Fraction(value.scaled(200), 1 << 200) if isinstance(value, Surd) else Fraction(value)
    return np.longdouble(str(exact.numerator)) / np.longdouble(str(exact.denominator))


def entries(table: Tableau) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = np.zeros((table.stages, table.stages), dtype=np.longdouble)
    for i, row in enumerate(table.a):
        a[i, :i] = [long(value) for value in row]
    return a, np.array([long(value) for value in table.b]), np.array([long(value) for value in table.c])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_sum(table: Tableau) -> None:
    a, b, c = entries(table)
    assert np.allclose(a.sum(1), c, rtol=0, atol=1e-14)
    assert b.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_observed_order(table: Tableau) -> None:
    """The slope of the error of a pendulum's motion when the steps are halved."""
    a, b, _ = entries(table)

    def f(y: np.ndarray) -> np.ndarray:
        return np.array([y[1], -np.sin(y[0])], dtype=np.longdouble)

    def integrate(steps: int) -> np.ndarray:
        y, h = np.array([1, 0.5], dtype=np.longdouble), np.longdouble(4) / steps
        for _ in range(steps):
            k = np.zeros((table.stages, 2), dtype=np.longdouble)
            for i in range(table.stages):
                k[i] = f(y + h * (a[i, :i] @ k[:i]))
            y = y + h * (b @ k)
        return y

    exact = integrate_finely(f)
    low = 4 if table.order >= 8 else 16
    errors = [float(np.abs(integrate(low * 2**i) - exact).max()) for i in range(3)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(table.order, abs=0.6), (slopes, errors)


def integrate_finely(f) -> np.ndarray:
    """The pendulum at T = 4 by extrapolation of the midpoint rule, which shares nothing with the tables."""
    rows: list[list[np.ndarray]] = []
    for i in range(9):
        steps = 8 * 2**i
        y, h = np.array([1, 0.5], dtype=np.longdouble), np.longdouble(4) / steps
        before, y = y, y + h * f(y)  # Gragg's rule with smoothing at the end: an expansion in h²
        for _ in range(steps - 1):
            before, y = y, before + 2 * h * f(y)
        row = [(before + y + h * f(y)) / 2]
        for j, last in enumerate(rows[-1] if rows else []):
            row.append(row[j] + (row[j] - last) / (4 ** (j + 1) - 1))
        rows.append(row)
    return rows[-1][-1]


def test_coefficients_are_verners() -> None:
    """Some of them by hand, and all as in the table that is shipped."""
    assert verner(8).a[11][8] == Surd(-340864, 242816, 405)
    assert verner(8).b[13] == Fraction(9, 280)
    table = json.loads(resources.files("pararealize.restacking").joinpath("verner_rk89.json").read_text())
    a, *_ = entries(verner(9))
    for i, row in table["a"].items():
        for j, (p, q, d) in row.items():
            assert a[int(i) - 1, int(j) - 1] == pytest.approx((p + q * math.sqrt(6)) / d, rel=1e-12)
    assert np.count_nonzero(a) == sum(len(row) for row in table["a"].values())


@pytest.mark.parametrize("entry", ["a6,1", "a12,7", "a12,10", "b8,1"])
def test_a_wrong_coefficient_is_found(entry: str) -> None:
    """One coefficient of Verner's formula off by one part in 10^15 fails what it claims."""
    table = verner(8)
    a, b = [list(row) for row in table.a], list(table.b)
    row, column = entry[1:].split(",")
    values = b if entry[0] == "b" else a[int(row) - 1]
    old = values[int(column) - 1]
    values[int(column) - 1] = (
        Surd(10**15 * old.p + 1, 10**15 * old.q, 10**15 * old.d)
        if isinstance(old, Surd)
        else old * (1 + Fraction(1, 10**15))
    )
    with pytest.raises(TableauError, match="does not sum" if entry[0] == "b" else "order conditions do not hold"):
        Tableau(name="off", a=a, b=b, order=8)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_table_has_a_higher_order(table: Tableau) -> None:
    with pytest.raises(TableauError, match=f"claim order {table.order}"):
        Tableau(name=table.name, a=table.a, b=table.b, order=table.order + 1)


def test_floats_are_checked_to_nine_digits() -> None:
    a, b, c = [[], [0.5], [0, 0.5], [0, 0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0, 0.5, 0.5, 1]
    assert Tableau(name="rk4", a=a, b=b, c=c, order=4).order == 4
    with pytest.raises(TableauError, match="order conditions"):
        Tableau(name="rk4", a=[[], [0.5], [0, 0.50001], [0, 0, 1.0]], b=b, order=4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"a": [[HALF], [1]], "b": [HALF, HALF]}, r"has rows \[1\] of another length"),
        ({"a": [[HALF, 0], [1, 0]], "b": [HALF, HALF]}, r"is implicit: a\[1,1\] = 1/2 .* take an explicit method"),
        ({"a": [[0, 1], [1, 0]], "b": [HALF, HALF]}, r"is implicit: a\[1,2\]"),
        ({"a": [[], [HALF]], "b": [0, 1], "c": [0, 1]}, r"does not sum: row 2 of a sums to 0\.5 and c\[2\] is 1"),
        ({"a": [[], [HALF]], "b": [HALF, 1]}, r"does not sum: the weights b sum to 1\.5 and not to 1"),
        ({"a": [[], [HALF]], "b": [1]}, "2 rows a, 1 weights b; give one of each"),
        ({"a": [], "b": []}, "0 rows a"),
        ({"a": [[], [HALF]], "b": [0, 1], "order": 3}, "2 of 4 order conditions do not hold, the first for the tree"),
        ({"a": [[], [HALF]], "b": [0, 1], "order": 2.0}, r"claims order 2\.0"),
        ({"a": [[]], "b": [math.inf]}, "has the entry inf"),
        ({"a": [[]], "b": ["1"]}, "has the entry '1'"),
        ({"a": [[HALF], [1, 1]], "b": [HALF, HALF], "order": 99}, "of another length.*; and claims order 99"),
    ],
)
def test_what_is_no_table_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(TableauError, match=message):
        Tableau(name="mine", **fields)


def test_unknown_scheme() -> None:
    with pytest.raises(TableauError, match=r"no scheme 'midpont'; did you mean 'midpoint'\? take one of euler, .*rk8"):
        tableau("midpont")
    with pytest.raises(TableauError, match="no scheme 'heun'; take one of euler"):
        tableau("heun")
    with pytest.raises(TableauError, match="formulas of orders 8 and 9"):
        verner(7)


def test_trees_are_distinct_and_as_many_as_cayley_counted() -> None:
    def canonical(tree) -> tuple:
        return tuple(sorted(map(canonical, tree)))

    counts = [1, 1, 2, 4, 9, 20, 48, 115, 286]
    for nodes, count in enumerate(counts, start=1):
        assert len({canonical(tree) for tree in rooted_trees(nodes)}) == len(rooted_trees(nodes)) == count


def test_stacked_euler_is_consistent_with_its_own_step() -> None:
    table = stacked_euler(5)
    assert (table.total, table.stages, table.order) == (5, 5, 1)
    with pytest.raises(TableauError, match="claim order 1"):
        Tableau(name="no", a=table.a, b=table.b, total=5, order=2)


def test_tables_are_frozen_and_compare_by_value() -> None:
    with pytest.raises(AttributeError):
        tableau("rk4").order = 5  # type: ignore[misc]
    assert verner(8) == Tableau(name="rk8", a=verner(8).a, b=verner(8).b, c=verner(8).c, order=8)
