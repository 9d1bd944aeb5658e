"""Which rank has which segments of each window, and what passes between them."""

from __future__ import annotations

from pararealize.plan.peers import Peers
from pararealize.plan.window_ranks import ranks_of_windows
from tests.plans import windows_plan

NOBODY = Peers(z_from=None, z_to=None)


def test_short_windows_begin_on_the_first_rank_and_the_last_one_ends_on_the_last() -> None:
    plan = windows_plan([1, 3, 2, 2])
    windows = ranks_of_windows(plan.windows, [(1, 1), (2, 2), (3, 3)])
    assert [window.members for window in windows] == [(0,), (0, 1, 2), (0, 1), (1, 2)]
    assert [window.owner for window in windows] == [0, 2, 1, 2]
    assert [window.m for window in windows] == [1, 2, 3, 4]
    last = windows[-1]
    assert last.peers == (NOBODY, Peers(z_from=None, z_to=2), Peers(z_from=1, z_to=None))
    assert (last.rank_of(1), last.last_of(2), last.n, last.value("z", 1)) == (1, 2, 2, "z_4_1")


def test_a_rank_has_several_segments_or_none() -> None:
    plan = windows_plan([4, 1, 3])
    first, second, third = ranks_of_windows(plan.windows, [(1, 2), (3, 4)])
    assert first.runs == (range(1, 3), range(3, 5))
    assert second.members == (0,)
    assert third.runs == (range(1, 2), range(2, 4))


def test_an_all_reduce_needs_all_ranks_identities_alone_and_a_window_behind() -> None:
    plan = windows_plan([3, 2, 3, 3])
    runs, every = [(1, 1), (2, 2), (3, 3)], {row.name for row in plan.coarse_blocks}
    windows = ranks_of_windows(plan.windows, runs, every)
    assert [window.all_reduces for window in windows] == [True, False, True, False]
    assert windows[0].peers == (NOBODY,) * 3
    assert windows[-1].peers[1].sum_to == 2  # what only the head reads is summed on its rank
    some = ranks_of_windows(plan.windows, runs, every - {"F3_2"})
    assert [window.all_reduces for window in some] == [True, False, False, False]
    assert not any(window.all_reduces for window in ranks_of_windows(plan.windows, runs))
    assert not any(window.all_reduces for window in ranks_of_windows(plan.windows, [(1, 3)], every))


def test_values_of_one_window_alone_have_one_number() -> None:
    (window,) = ranks_of_windows(windows_plan([3]).windows, [(1, 3)])
    assert (window.m, window.value("s", 2)) == (0, "s_2")
