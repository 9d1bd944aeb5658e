"""The cut with the smallest step, forward and backward, against brute force over every way to cut."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.planning import step_cuts
from pararealize.planning.path_cuts import CutProblem, cheapest_cuts
from pararealize.planning.step_cuts import StepProblem, cheapest_step

numbers = st.integers(0, 12)


@st.composite
def step_problems(draw) -> StepProblem:
    """Up to eight blocks between spaces of up to three kinds; forward and backward have nothing in common."""
    blocks, count = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    kinds = draw(st.lists(st.integers(0, count - 1), min_size=blocks + 1, max_size=blocks + 1))
    share = draw(st.sampled_from([0, 1]))
    row = st.lists(numbers, min_size=count, max_size=count)

    def one_way() -> CutProblem:
        return CutProblem(
            work=draw(st.lists(numbers, min_size=blocks, max_size=blocks)),
            kinds=kinds,
            adapter=draw(row),
            coarse=draw(st.lists(row, min_size=count, max_size=count)),
            first=draw(numbers),
            message=draw(st.one_of(st.just([]), row)),
            share=share,
        )

    return StepProblem(forward=one_way(), backward=one_way())


@settings(max_examples=400)
@given(step_problems(), st.data())
def test_cheapest_step_equals_brute_force(problem, data):
    blocks = len(problem.forward.work)
    n = data.draw(st.integers(1, blocks))
    found = cheapest_step(problem, n)
    assert len(found) == n
    assert list(found) == sorted({0, *found})
    every = [(0, *rest) for rest in itertools.combinations(range(1, blocks), n - 1)]
    assert problem.step(found) == min(problem.step(starts) for starts in every)


@settings(max_examples=100)
@given(step_problems(), st.data())
def test_the_path_on_arrays_is_the_critical_path(problem, data):
    """Without it moving boundaries would follow wrong figures, which the exact search hides in small networks."""
    blocks = len(problem.forward.work)
    rest = data.draw(st.sets(st.integers(1, blocks - 1))) if blocks > 1 else set()
    starts = (0, *sorted(rest))
    for way in (problem.forward, problem.backward):
        assert step_cuts._Path(way).length(np.array(starts)) == way.critical_path(starts)


@pytest.mark.parametrize("seed", range(12))
def test_many_pairs_equal_brute_force(seed):
    """Costs that no two blocks share, so that many pairs (t, u) are beaten by no other."""
    draw = random.Random(seed)
    blocks, n = 13, 6
    kinds = [draw.randrange(2) for _ in range(blocks + 1)]

    def one_way() -> CutProblem:
        return CutProblem(
            work=[draw.expovariate(1) for _ in range(blocks)],
            kinds=kinds,
            adapter=[draw.random(), draw.random()],
            coarse=[[draw.random(), draw.random()], [draw.random(), draw.random()]],
            message=[draw.random(), draw.random()],
        )

    problem = StepProblem(forward=one_way(), backward=one_way())
    every = ((0, *rest) for rest in itertools.combinations(range(1, blocks), n - 1))
    assert problem.step(cheapest_step(problem, n)) == pytest.approx(min(map(problem.step, every)))


@settings(max_examples=100)
@given(step_problems(), st.data())
def test_without_the_search_it_is_never_worse_than_for_sums(problem, data):
    n = data.draw(st.integers(1, len(problem.forward.work)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_cuts, "LARGEST_TABLE", 0)
        found = cheapest_step(problem, n)
    assert list(found) == sorted({0, *found})
    sums = problem.sums
    assert sums.critical_path(found) <= problem.step(found) <= problem.step(cheapest_cuts(sums, n))


@given(step_problems(), st.integers(1, 5), st.data())
def test_proportional_directions_are_cut_as_their_sum(problem, ratio, data):
    """Backward a multiple of forward: one segment is critical both ways, and the sums' longest path is the step."""
    f = problem.forward
    backward = CutProblem(
        work=[ratio * w for w in f.work],
        kinds=f.kinds,
        adapter=[ratio * a for a in f.adapter],
        coarse=[[ratio * c for c in row] for row in f.coarse],
        first=ratio * f.first,
        message=[ratio * m for m in f.message],
        share=f.share,
    )
    both = StepProblem(forward=f, backward=backward)
    n = data.draw(st.integers(1, len(f.work)))
    assert both.step(cheapest_step(both, n)) == both.sums.critical_path(cheapest_cuts(both.sums, n))


def test_a_deep_network_is_cut_in_time():
    draw = random.Random(0)
    blocks = 333
    kinds = [3 * i // (blocks + 1) for i in range(blocks + 1)]

    def one_way(scale: float, coarse: float) -> CutProblem:
        return CutProblem(
            work=[scale * (3 - kind) * draw.uniform(1, 1.3) for kind in kinds[:-1]],
            kinds=kinds,
            adapter=[0.1] * 3,
            coarse=[[coarse * draw.random() for _ in range(3)] for _ in range(3)],
            first=scale,
        )

    problem = StepProblem(forward=one_way(1, 8), backward=one_way(2.2, 26))
    began = time.process_time()
    starts = cheapest_step(problem, 12)
    assert time.process_time() - began < 3  # about 0.1
    assert problem.step(starts) < problem.step(cheapest_cuts(problem.sums, 12))
