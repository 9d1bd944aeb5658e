"""The mathematics on plain numbers and matrices: termination, the paper's scheme written anew, parareal, refusals."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.hierarchy import make_hierarchy
from pararealize.multigrid.solver.solver import arrival, arrivals, march, solve
from pararealize.network import parareal
from tests.hierarchies import hierarchies


def maps(fixed, hierarchy, seed: int):
    """Steps u + w·sin(a u) and transitions cos(a u), with random a."""
    a = np.random.default_rng(seed).uniform(-0.6, 0.6, len(fixed))

    def step(level: int, s: int, u: float) -> float:
        it = hierarchy.levels[level].steps[s]
        return math.cos(a[it.layer] * u) if fixed[it.layer] else u + it.width * math.sin(a[it.layer] * u)

    return step


@given(hierarchies(), st.sampled_from(["F", "FCF"]), st.sampled_from(["V", "F"]), st.integers(0, 99), st.booleans())
def test_as_many_iterations_as_intervals_are_the_serial_values_to_the_bit(case, relaxation, cycle, seed, warm) -> None:
    fixed, hierarchy = case
    step = maps(fixed, hierarchy, seed)
    serial = march(hierarchy, step, 0, 0.7)
    ends = [end for _, end in hierarchy.levels[0].intervals]
    count = len(ends)
    start = [0.123 * j for j in range(count)] if warm else None
    solution = solve(0.7, hierarchy, step, iterations=count, relaxation=relaxation, cycle=cycle, start=start)
    assert arrivals(hierarchy, step, 0, solution.points) == [serial[end] for end in ends]


@given(hierarchies(), st.integers(0, 99), st.integers(1, 5))
def test_iteration_k_has_the_first_k_intervals_right(case, seed: int, k: int) -> None:
    fixed, hierarchy = case
    step = maps(fixed, hierarchy, seed)
    serial = march(hierarchy, step, 0, 0.7)
    points = solve(0.7, hierarchy, step, iterations=k).points
    ends = [0, *(end for _, end in hierarchy.levels[0].intervals)]
    for j in range(min(k, len(points))):
        assert points[j] == serial[ends[j]]


def test_fcf_carries_values_twice_as_far() -> None:
    hierarchy = make_hierarchy([False] * 12, coarsening=2)
    step = maps([False] * 12, hierarchy, 3)
    serial = march(hierarchy, step, 0, 0.7)
    once = solve(0.7, hierarchy, step, iterations=2, relaxation="FCF").points
    assert once[2] == serial[4]
    assert solve(0.7, hierarchy, step, iterations=2).points[2] != serial[4]


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
def test_the_paper_s_scheme_written_out(relaxation: str) -> None:
    """Residual and full approximation scheme as the facts state them, on all 12 points of a grid in an array."""
    n, c, k = 12, 3, 3
    hierarchy = make_hierarchy([False] * n, coarsening=c)
    step = maps([False] * n, hierarchy, 5)
    u = np.zeros(n + 1)
    u[0] = 0.7
    for j in range(n // c):
        u[(j + 1) * c] = step(1, j, u[j * c])
    norms = []
    for _ in range(k - 1):
        for turn in range(2 if relaxation == "FCF" else 1):
            if turn:
                u[c::c] = [step(0, p - 1, u[p - 1]) for p in range(c, n + 1, c)]
            for j in range(n // c):
                for i in range(1, c):
                    u[j * c + i] = step(0, j * c + i - 1, u[j * c + i - 1])
        r = [step(0, p - 1, u[p - 1]) - u[p] for p in range(c, n + 1, c)]
        norms.append(math.sqrt(sum(x * x for x in r)))
        g = [r[j] + u[(j + 1) * c] - step(1, j, u[j * c]) for j in range(n // c)]
        v = u[0]
        for j in range(n // c):
            v = step(1, j, v) + g[j]
            u[(j + 1) * c] = v
    solution = solve(0.7, hierarchy, step, iterations=k, relaxation=relaxation)
    assert np.allclose(solution.points, u[::c], rtol=1e-13)
    assert np.allclose(solution.residuals, norms, rtol=1e-9)


def test_two_levels_with_f_relaxation_are_parareal() -> None:
    hierarchy = make_hierarchy([False] * 10, coarsening=4)
    step = maps([False] * 10, hierarchy, 8)
    count = len(hierarchy.levels[0].intervals)
    segments = [lambda u, j=j: arrival(hierarchy, step, 0, j, u) for j in range(count)]
    coarse = [lambda u, j=j: step(1, j, u) for j in range(count)]
    for k in range(count + 1):
        assert parareal.iterate(0.7, segments, coarse, k) == solve(0.7, hierarchy, step, iterations=k + 1).points


def test_three_levels_beat_the_same_coarse_grid_without_correction() -> None:
    """Cycles contract for smooth coefficients: each residual is smaller, on three levels and in F-cycles."""
    count = 64
    hierarchy = make_hierarchy([False] * count, levels=3, coarsening=4)

    def step(level: int, s: int, u: float) -> float:
        it = hierarchy.levels[level].steps[s]
        return u + it.width / count * math.sin(3 * u + it.layer / count)

    v = solve(0.3, hierarchy, step, iterations=6).residuals
    f = solve(0.3, hierarchy, step, iterations=6, cycle="F").residuals
    assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(v))
    assert f[0] < v[0]  # the F-cycle's guess was corrected on the level between
    assert f[-1] < v[-1] or f[-1] < 1e-12


def test_tolerance_ends_early_and_keeps_what_was_found() -> None:
    hierarchy = make_hierarchy([False] * 16, coarsening=2)
    step = maps([False] * 16, hierarchy, 2)
    every = solve(0.7, hierarchy, step, iterations=8)
    some = solve(0.7, hierarchy, step, iterations=8, tolerance=every.residuals[3])
    assert some.residuals == every.residuals[:4]
    assert some.points == solve(0.7, hierarchy, step, iterations=4).points


def test_a_warm_start_at_the_solution_stays_there() -> None:
    hierarchy = make_hierarchy([False] * 12, coarsening=3)
    step = maps([False] * 12, hierarchy, 4)
    right = march(hierarchy, step, 0, 0.7)[3::3]
    solution = solve(0.7, hierarchy, step, iterations=1, start=right)
    assert solution.residuals == [0.0]
    assert solution.points == [0.7, *right]


@pytest.mark.parametrize(
    "levels, k, relaxation", [(2, 1, "F"), (2, 2, "F"), (2, 3, "F"), (2, 2, "FCF"), (3, 2, "F"), (3, 3, "F")]
)
def test_the_solve_backwards_is_the_transpose_of_the_solve(levels: int, k: int, relaxation: str) -> None:
    """⟨w, U_J(v)⟩ = ⟨λ_0(w), v⟩ after any number of iterations: both sum the same products of fine and coarse maps."""
    hierarchy = make_hierarchy([False] * 11, levels=levels, coarsening=2)
    matrices = np.random.default_rng(0).normal(0, 0.15, (11, 3, 3))

    def step(grids, level: int, s: int, u, transpose: bool):
        it = grids.levels[level].steps[s]
        matrix = np.eye(3) + it.width * matrices[it.layer]
        return (matrix.T if transpose else matrix) @ u

    backwards = hierarchy.reversed()
    v, w = np.random.default_rng(1).normal(size=(2, 3))
    settings = {"iterations": k, "relaxation": relaxation, "norm": lambda residuals: 1.0}
    ends = solve(v, hierarchy, lambda level, s, u: step(hierarchy, level, s, u, False), **settings).points[-1]
    starts = solve(w, backwards, lambda level, s, u: step(backwards, level, s, u, True), **settings).points[-1]
    assert w @ ends == pytest.approx(starts @ v, rel=1e-12)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"iterations": 0}, ["iterations are 0", "at least 1"]),
        ({"iterations": 1.5}, ["iterations are 1.5"]),
        ({"iterations": True}, ["iterations are True"]),
        ({"iterations": 1, "relaxation": "FC"}, ["relaxation is 'FC'", "'FCF'"]),
        ({"iterations": 1, "cycle": "W"}, ["cycle is 'W'"]),
        ({"iterations": 0, "relaxation": 1, "cycle": 2}, ["iterations are 0", "relaxation is 1", "cycle is 2"]),
        ({"iterations": 1, "start": [1.0]}, ["1 starting values for 4 C-points"]),
    ],
)
def test_refusals(settings, words) -> None:
    hierarchy = make_hierarchy([False] * 8, coarsening=2)
    with pytest.raises(MultigridError) as caught:
        solve(1.0, hierarchy, maps([False] * 8, hierarchy, 0), **settings)
    assert all(word in str(caught.value) for word in words)
