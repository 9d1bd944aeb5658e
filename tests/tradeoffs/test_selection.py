"""Selections of windows: no overlap, and no other selection that is both faster and nearer; which are measured."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pararealize.tradeoffs import selection
from pararealize.tradeoffs.selection import Selection, fastest_within, selections, spread
from pararealize.tradeoffs.sensitivity import WindowTrial

costs = st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6)


@given(costs, st.data())
def test_the_front_of_all_selections(costs: list[float], data: st.DataObject) -> None:
    spans = [(a, b) for a in range(len(costs)) for b in range(a + 2, len(costs) + 1)]
    some = data.draw(st.lists(st.sampled_from(spans), max_size=6, unique=True))
    trials = [
        WindowTrial(
            starts=(a, a + 1),
            stop=b,
            cost=data.draw(st.floats(0.3, 1.0)) * sum(costs[a:b]),
            error=data.draw(st.floats(0.01, 1.0)),
        )
        for a, b in some
    ]
    front = selections(costs, trials)
    assert (front[0].windows, front[0].time) == ((), sum(costs))  # the original
    possible = []
    for chosen in itertools.chain.from_iterable(itertools.combinations(trials, k) for k in range(len(trials) + 1)):
        spans_of = sorted((t.first, t.stop) for t in chosen)
        if all(a[1] <= b[0] for a, b in itertools.pairwise(spans_of)):
            inside = {i for t in chosen for i in range(t.first, t.stop)}
            time = sum(t.cost for t in chosen) + sum(c for i, c in enumerate(costs) if i not in inside)
            possible.append((time, math.sqrt(sum(t.error**2 for t in chosen))))
    for one in front:
        ends = [(w.first, w.stop) for w in one.windows]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
        assert not any(t < one.time - 1e-9 and e < one.error - 1e-9 for t, e in possible)
    for time, error in possible:  # each is beaten, or on the front
        assert any(one.time <= time + 1e-9 and one.error <= error + 1e-9 for one in front)
    assert all(a.time > b.time and a.error < b.error for a, b in itertools.pairwise(front))


def test_of_very_many_the_nearest_of_each_span_of_time_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [WindowTrial(starts=(i, i + 1), stop=i + 2, cost=1 + i / 53, error=0.5 - i / 89) for i in range(0, 24, 2)]
    everything = selections([1.0] * 24, trials)
    monkeypatch.setattr(selection, "MOST", 20)
    few = selections([1.0] * 24, trials)
    assert len(few) <= 20 < len(everything)
    assert (few[0].time, few[-1].time) == (everything[0].time, everything[-1].time)
    for one in few:
        assert one.error <= 1.1 * min(other.error for other in everything if other.time <= one.time + 1e-9) + 1e-9


def _front(times: list[float]) -> list[Selection]:
    """The original, and windows of which each is faster than the one before, and errs more."""
    window = WindowTrial(starts=(0, 1), stop=2, cost=1.0, error=0.1)
    return [
        Selection(windows=(window,) if i else (), time=time, error=float(i))
        for i, time in enumerate(sorted(times, reverse=True))
    ]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40, unique=True), st.integers(1, 9))
def test_points_are_spread_from_the_nearest_to_the_fastest(times: list[float], points: int) -> None:
    front = _front(times)
    chosen = spread(front, points)
    assert len(chosen) == min(points, len(times) - 1)
    assert chosen == sorted(chosen, key=lambda one: -one.time)
    assert all(one.windows for one in chosen)
    if chosen:
        assert chosen[-1] == front[-1]
        assert points == 1 or chosen[0] == front[1]


def test_points_are_at_equal_ratios_of_times() -> None:
    chosen = spread(_front([100.0, *(2.0**i for i in range(1, 6)), 1.0, 1.1, 1.2, 1.3]), 6)
    assert [one.time for one in chosen] == [32, 16, 8, 4, 2, 1]


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0, 60))
def test_the_fastest_within_a_tolerance_is_found_in_few_measurements(
    windows: int, place: int, tolerance: float
) -> None:
    """Wherever errors are monotone, whatever was predicted."""
    front, measured = _front([1.0 + i for i in range(windows + 1)]), []

    def measure(one: Selection) -> float:
        measured.append(one)
        return tolerance + (0.5 if one.error > place else 0)

    fastest_within(front, 8, tolerance, measure)
    within = [one for one in front[1:] if one.error <= place]
    assert len(measured) <= math.ceil(math.log2(windows + 1)) + 1
    if within:
        assert within[-1] in measured
    if len(within) < windows:
        assert front[len(within) + 1] in measured
    assert len(measured) == len({one.error for one in measured})
