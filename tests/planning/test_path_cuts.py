"""Cuts against brute force over every way to cut, and against the arithmetic of the paper."""

from __future__ import annotations

import itertools
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.planning.path_cuts import CutProblem, cheapest_cuts, equal_cuts

numbers = st.integers(0, 12)


@st.composite
def problems(draw) -> CutProblem:
    """Up to nine blocks between spaces of up to four kinds, in any order, with any costs."""
    blocks, kinds = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    row = st.lists(numbers, min_size=kinds, max_size=kinds)
    return CutProblem(
        work=draw(st.lists(numbers, min_size=blocks, max_size=blocks)),
        kinds=draw(st.lists(st.integers(0, kinds - 1), min_size=blocks + 1, max_size=blocks + 1)),
        adapter=draw(row),
        coarse=draw(st.lists(row, min_size=kinds, max_size=kinds)),
        first=draw(numbers),
        message=draw(st.one_of(st.just([]), row)),
        share=draw(st.sampled_from([0, 1])),
    )


@settings(deadline=None, max_examples=400)
@given(problems(), st.data())
def test_cheapest_cuts_equal_brute_force(problem, data):
    blocks = len(problem.work)
    n = data.draw(st.integers(1, blocks))
    found = cheapest_cuts(problem, n)
    assert len(found) == n
    assert found[0] == 0
    assert list(found) == sorted(set(found))
    every = [(0, *rest) for rest in itertools.combinations(range(1, blocks), n - 1)]
    assert problem.critical_path(found) == min(problem.critical_path(starts) for starts in every)


def test_later_segments_are_longer_and_nothing_waits():
    """Uniform costs: T = W/N + c (N-1)(N+2) / (2N), with s_{j+1} = t_j throughout."""
    n, c, blocks = 4, 8, 400
    problem = CutProblem(work=[1] * blocks, kinds=[0] * (blocks + 1), adapter=[0], coarse=[[c]])
    starts = cheapest_cuts(problem, n)
    lengths = [b - a for a, b in itertools.pairwise((*starts, blocks))]
    assert lengths == [94, 94, 102, 110]
    assert problem.critical_path(starts) == blocks / n + c * (n - 1) * (n + 2) / (2 * n)


def test_memory_grows_linearly_up_to_ten_thousand_blocks():
    def peak(blocks: int) -> int:
        kinds = [3 * i // (blocks + 1) for i in range(blocks + 1)]
        work = [1000 + (i * 7919) % 13 for i in range(blocks)]
        problem = CutProblem(work=work, kinds=kinds, adapter=[1, 2, 3], coarse=[[9000] * 3] * 3, first=5)
        tracemalloc.start()
        cheapest_cuts(problem, 12)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(10_000) < 6 * peak(2500)


def test_resnet_1001_is_cut_as_in_the_paper():
    stages = [(0, 110), (111, 221), (222, 332)]
    starts, note = equal_cuts(stages, 12)
    assert [b - a for a, b in itertools.pairwise((*starts, 333))] == [28, 28, 28, 27] * 3
    assert note == ""
    assert equal_cuts(stages, 3) == ((0, 111, 222), "")


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_equal_cuts_are_cuts(lengths, data):
    ends = list(itertools.accumulate(lengths))
    stages = [(end - length, end - 1) for length, end in zip(lengths, ends, strict=True)]
    n = data.draw(st.integers(1, ends[-1]))
    starts, note = equal_cuts(stages, n)
    assert len(starts) == n
    assert starts[0] == 0
    assert list(starts) == sorted(set(starts))
    assert starts[-1] < ends[-1]
    assert (note == "") == (n % len(lengths) == 0 and n // len(lengths) <= min(lengths))


def test_uneven_stages_say_so():
    starts, note = equal_cuts([(0, 2), (3, 6), (7, 12), (13, 15)], 2)
    assert starts == (0, 7)
    assert note == "2 segments over 4 stages: 0, 1, 1, 0"
    assert equal_cuts([(4, 6), (7, 12)], 3)[0] == (4, 7, 10), "of a window, which need not begin with block 0"
