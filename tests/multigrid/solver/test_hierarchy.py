"""Levels of multigrid: who covers what, uneven intervals, transitions, shares of ranks, refusals."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.hierarchy import LevelStep, make_hierarchy
from tests.hierarchies import hierarchies


@given(hierarchies())
def test_every_level_covers_every_layer_once(case) -> None:
    fixed, hierarchy = case
    for number, level in enumerate(hierarchy.levels):
        position = 0
        for step in level.steps:
            assert step.layer == position
            position += step.width
            assert step.width == 1 or not any(fixed[step.layer : position])  # none reaches over a transition
        assert position == len(fixed)
        if number + 1 < len(hierarchy.levels):
            assert [a for a, _ in level.intervals[1:]] == [b for _, b in level.intervals[:-1]]
            assert len(hierarchy.levels[number + 1].steps) == len(level.intervals)


@given(hierarchies())
def test_reversed_twice_is_the_same(case) -> None:
    _, hierarchy = case
    backwards = hierarchy.reversed()
    assert backwards.reversed() == hierarchy
    for level, back in zip(hierarchy.levels, backwards.levels, strict=True):
        assert back.steps == level.steps[::-1]
        for j, (first, end) in enumerate(level.intervals):
            mirrored = back.intervals[len(level.intervals) - 1 - j]
            assert back.steps[slice(*mirrored)] == level.steps[first:end][::-1]


@given(hierarchies(), st.integers(1, 9))
def test_shares_are_consecutive_and_whole(case, ranks: int) -> None:
    _, hierarchy = case
    shares = hierarchy.share(ranks)
    count = len(hierarchy.levels[0].intervals)
    assert len(shares) == ranks
    assert [j for share in shares for j in share] == list(range(count))
    assert sum(len(share) > 0 for share in shares) == min(ranks, count)


def test_shares_are_even() -> None:
    hierarchy = make_hierarchy([False] * 64, coarsening=4)
    for ranks in (2, 4, 8, 16):
        assert {len(share) for share in hierarchy.share(ranks)} == {16 // ranks}


def test_uneven_intervals_and_a_transition() -> None:
    """The drawing at the head of hierarchy.py."""
    hierarchy = make_hierarchy([False] * 6 + [True] + [False] * 3, levels=3, coarsening=4)
    assert hierarchy.levels[0].intervals == ((0, 4), (4, 6), (6, 7), (7, 10))
    assert [(step.layer, step.width) for step in hierarchy.levels[1].steps] == [(0, 4), (4, 2), (6, 1), (7, 3)]
    assert hierarchy.levels[2].steps == (
        LevelStep(layer=0, width=6),
        LevelStep(layer=6, width=1),
        LevelStep(layer=7, width=3),
    )
    assert str(hierarchy) == (
        "level 0: 10 steps, 4 intervals of 4, 2, 1, 3\nlevel 1: 4 steps, 3 intervals of 2, 1, 1\nlevel 2: 3 steps"
    )


def test_a_coarsening_for_each_level() -> None:
    hierarchy = make_hierarchy([False] * 24, levels=3, coarsening=(2, 4))
    assert [len(level.steps) for level in hierarchy.levels] == [24, 12, 3]
    assert [step.width for step in hierarchy.levels[2].steps] == [8, 8, 8]


@pytest.mark.parametrize(
    "fixed, levels, coarsening, words",
    [
        ([False] * 8, 2, 9, ["coarsening = 9", "has 8", "pass coarsening="]),
        ([False] * 3 + [True] + [False] * 3, 2, 4, ["coarsening = 4", "has 3"]),
        ([False] * 8, 4, 4, ["levels = 4 are too many", "level 2", "pass levels=3"]),
        ([False] * 8, 1, 4, ["levels is 1", "at least 2"]),
        ([False] * 8, 2.0, 4, ["levels is 2.0"]),
        ([False] * 8, True, 4, ["levels is True"]),
        ([False] * 8, 2, 1, ["coarsening is 1", "at least 2"]),
        ([False] * 8, 2, "4", ["coarsening is '4'"]),
        ([False] * 8, 3, (2, 2, 2), ["3 coarsenings for 3 levels", "2 levels"]),
        ([False, True, False], 2, 2, ["has 1", "two in a row"]),
        ([], 2, 2, ["has 0"]),
    ],
)
def test_refusals_say_what_to_do(fixed, levels, coarsening, words) -> None:
    with pytest.raises(MultigridError) as caught:
        make_hierarchy(fixed, levels, coarsening)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_remedies_of_refusals_work() -> None:
    """What a message proposes is accepted."""
    assert len(make_hierarchy([False] * 8, levels=3, coarsening=4).levels) == 3
    for length, c in itertools.product(range(2, 20), range(2, 25)):
        if c > length:
            assert make_hierarchy([False] * length, 2, max(2, round(length**0.5)))
