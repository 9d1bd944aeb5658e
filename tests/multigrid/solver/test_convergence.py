"""Residual norms of the last steps: relative to the values, printed in a line a step, and no more than a thousand."""

import pytest

from pararealize.multigrid.solver.convergence import Convergence, StepNorms


def test_a_residual_is_measured_by_the_values() -> None:
    norms = StepNorms(forward=[8.0, 0.5], forward_size=10.0)
    assert norms.relative == pytest.approx(0.05)
    assert StepNorms(forward=[0.25]).relative == 0.25  # values that vanish, or were not measured: the norm itself


def test_a_step_prints_its_solves_and_leaves_out_an_adjoint_that_there_was_not() -> None:
    assert str(StepNorms(forward=[63.4449, 8.978])) == "forward 63.4 → 8.98"
    assert str(StepNorms(forward=[1.0], backward=[0.5, 2e-7])) == "forward 1, adjoint 0.5 → 2e-07"


def test_steps_begin_without_norms_of_their_own() -> None:
    first, second = StepNorms(), StepNorms()
    first.forward.append(1.0)
    assert second.forward == second.backward == []


def test_the_last_thousand_steps_stay_and_the_last_five_are_printed() -> None:
    convergence = Convergence()
    assert str(convergence) == "0 steps"
    for i in range(1003):
        convergence.append(StepNorms(forward=[float(i)]))
    assert len(convergence) == 1000
    assert convergence[0].forward == [3.0]
    lines = str(convergence).splitlines()
    assert lines[0] == "1000 steps"
    assert lines[1:] == [f"  forward {i:.3g}" for i in range(998, 1003)]
