"""Where windows begin, against brute force over every way to divide blocks into windows."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.planning.window_cuts import (
    CHANGE_CHARGE,
    LENGTH_CHARGE,
    WindowProblem,
    longest_segment,
    window_starts,
)


def prefix_of(work: list[float]) -> list[float]:
    return list(itertools.accumulate(work, initial=0.0))


def ways(a: int, b: int, parts: int) -> list[tuple[int, ...]]:
    """Every way to divide blocks a to b - 1 into so many runs, by their first blocks."""
    return [(a, *rest) for rest in itertools.combinations(range(a + 1, b), parts - 1)]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5))
def test_the_longest_segment_is_as_short_as_can_be(work, n):
    best = min(
        max(sum(work[a:b]) for a, b in itertools.pairwise((*starts, len(work))))
        for parts in range(1, min(n, len(work)) + 1)
        for starts in ways(0, len(work), parts)
    )
    assert best <= longest_segment(prefix_of(work), 0, len(work), n) <= 1.001 * best


@st.composite
def problems(draw) -> WindowProblem:
    """Up to seven blocks, some of which change the space."""
    blocks = draw(st.integers(1, 7))
    changes = draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks))
    work = draw(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=blocks, max_size=blocks))
    spaces = list(itertools.accumulate(map(int, changes), initial=0))
    return WindowProblem(work=work, spaces=spaces, n=draw(st.integers(1, 4)))


def least_changes(problem: WindowProblem, a: int, b: int, limit: float) -> int:
    """How many segments begin in another space than their window, where each is as long as the limit allows."""
    changes, begin, prefix = 0, a, prefix_of(list(problem.work))
    for i in range(a, b):
        if prefix[i + 1] - prefix[begin] > limit * (1 + 1e-9):
            begin = i
            changes += problem.spaces[i] != problem.spaces[a]
    return changes


def cost(problem: WindowProblem, a: int, b: int) -> float:
    """What the docstring says that a window costs: time, changes of the space, and length."""
    total = sum(problem.work)
    longest = longest_segment(prefix_of(list(problem.work)), a, b, min(problem.n, b - a))
    changes = least_changes(problem, a, b, longest) if problem.spaces[a] != problem.spaces[b - 1] else 0
    return longest + total * (CHANGE_CHARGE * changes + LENGTH_CHARGE * ((b - a) / len(problem.work)) ** 2)


@settings(deadline=None, max_examples=150)
@given(problems(), st.data())
def test_windows_begin_where_the_sum_is_least(problem, data):
    blocks = len(problem.work)
    windows = data.draw(st.integers(1, blocks))
    starts = window_starts(problem, 0, blocks, windows)
    assert list(starts) == sorted(set(starts))
    assert starts[0] == 0
    if windows in (1, blocks):
        assert len(starts) == windows
        return

    def is_free(a: int, b: int) -> bool:
        return b - a == 1 and problem.spaces[a] != problem.spaces[b]

    def asked(starts: tuple[int, ...]) -> int:
        return sum(not is_free(a, b) for a, b in itertools.pairwise((*starts, blocks)))

    def total(starts: tuple[int, ...]) -> float:
        return sum(cost(problem, a, b) for a, b in itertools.pairwise((*starts, blocks)))

    every = [way for parts in range(1, blocks + 1) for way in ways(0, blocks, parts) if asked(way) == windows]
    if every:
        assert asked(starts) == windows
        assert total(starts) <= min(map(total, every)) * (1 + 1e-9)
    else:
        assert len(starts) == windows, "blocks that change the space are counted, too"


def test_a_long_network_has_windows_of_one_length():
    alike = WindowProblem(work=[1.0] * 1000, spaces=[0] * 1001, n=12)
    starts = window_starts(alike, 0, 1000, 20)
    lengths = [b - a for a, b in itertools.pairwise((*starts, 1000))]
    assert len(lengths) == 20
    assert max(lengths) - min(lengths) <= 12
    assert sum(-(-length // 12) for length in lengths) <= 1.2 * 1000 / 12
