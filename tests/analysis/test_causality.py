"""Which side of an axis may be read, as plain data."""

import pytest
from pydantic import TypeAdapter

from pararealize.analysis.causality import Causality, causal_axes


@pytest.mark.parametrize(
    "side, allowed, refused",
    [
        (Causality(side="past"), [(9, 0), (0, 0), (3, -1)], [(0, 1), (9, 2)]),
        (Causality(side="past", offset=-1), [(9, -1)], [(9, 0)]),
        (Causality(side="past", stride=4, frame=True), [(9, 3)], [(9, 4)]),
        (Causality(side="past", stride=4), [(9, 0)], [(9, 1)]),
        (Causality(side="future"), [(0, 9), (-2, 9)], [(1, 9)]),
        (Causality(side="own"), [(0, 0)], [(1, 0), (0, 1)]),
        (Causality(side="unclear"), [], [(0, 0)]),
    ],
)
def test_what_a_module_may_read(side, allowed, refused):
    assert all(side.allows(*reach) for reach in allowed)
    assert not any(side.allows(*reach) for reach in refused)


def test_it_prints_and_survives_json():
    sides = None, Causality(side="past", offset=-2), Causality(side="own")
    assert causal_axes(sides) == "axis 2: nothing later, 2 before its own, axis 3: its own position alone"
    assert causal_axes((None, None)) == ""
    adapter = TypeAdapter(tuple[Causality | None, ...])
    assert adapter.validate_json(adapter.dump_json(sides)) == sides
