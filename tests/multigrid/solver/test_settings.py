"""Settings are read from a network as they stand, checked forward first, and given to a solve by direction."""

import dataclasses
from types import SimpleNamespace

import pytest

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.hierarchy import make_hierarchy
from pararealize.multigrid.solver.settings import Settings, check_iterations
from pararealize.multigrid.solver.solver import solve

OTHERS = Settings(
    forward_iterations=3,
    backward_iterations=2,
    relaxation="FCF",
    cycle="F",
    tolerance=0.5,
    warm_start=True,
    exact=True,
)


def test_every_setting_is_read_anew_from_a_network_s_attributes() -> None:
    net = SimpleNamespace(**dataclasses.asdict(OTHERS), hierarchy=None)
    assert Settings.of(net) == OTHERS
    net.tolerance = 0.25
    assert Settings.of(net) == dataclasses.replace(OTHERS, tolerance=0.25)
    assert all(getattr(OTHERS, field.name) != field.default for field in dataclasses.fields(Settings))


def test_a_solve_takes_what_of_solve_gives() -> None:
    """Forward and adjoint differ in their iterations alone; the tolerance ends either early."""
    levels = make_hierarchy([False] * 12, coarsening=3)
    settings = Settings(forward_iterations=4, backward_iterations=2, relaxation="FCF", cycle="F")
    forward, backward = (
        solve(1.0, levels, lambda level, s, u: 0.9 * u - 0.01 * (level + s) * u, **settings.of_solve(direction))
        for direction in ("forward", "backward")
    )
    assert (len(forward.residuals), len(backward.residuals)) == (3, 1)
    loose = dataclasses.replace(settings, tolerance=1e3).of_solve("forward")
    assert len(solve(1.0, levels, lambda level, s, u: 0.9 * u, **loose).residuals) == 1


@pytest.mark.parametrize(
    "faults, words",
    [
        ({"forward_iterations": 0, "backward_iterations": -2}, ["iterations are 0"]),
        ({"backward_iterations": True}, ["iterations are True"]),
        ({"backward_iterations": 1.5}, ["iterations are 1.5"]),
        ({"relaxation": "C", "cycle": "W", "forward_iterations": 0}, ["are 0", "; and ", "is 'C'", "cycle is 'W'"]),
        ({"tolerance": "1e-3", "exact": "no"}, ["tolerance is '1e-3'; pass a residual norm", "; and exact is 'no'"]),
        ({"tolerance": None}, ["tolerance is None"]),
        ({"tolerance": float("nan"), "warm_start": 2}, ["tolerance is nan", "warm_start is 2; pass True or False"]),
    ],
)
def test_nonsense_is_refused_with_all_faults_of_a_direction(faults, words) -> None:
    with pytest.raises(MultigridError) as caught:
        Settings(**faults).check()
    assert all(word in str(caught.value) for word in words), caught.value
    assert "-2" not in str(caught.value)


def test_what_is_sound_is_taken() -> None:
    OTHERS.check()
    Settings().check()
    check_iterations(1, "FCF", "F")
