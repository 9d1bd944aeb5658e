"""Rows for the network's own parts: numbers that can be, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from pararealize.errors import PlanError
from pararealize.plan.spec import PartPlan, SegmentPlan
from tests.drawn_plans import cost, make_plan


@pytest.mark.parametrize(
    "wrong", [{"parameters": -1}, {"flops_forward": 2**63}, {"cost_backward": -1.0}, {"cost_forward": 1e300}, {"x": 1}]
)
def test_a_part_has_no_numbers_that_cannot_be(wrong: dict[str, Any]) -> None:
    right = {"parameters": 0, **cost(1e9)}
    assert PartPlan(**right).cost == 3e9
    with pytest.raises(PlanError):
        PartPlan(**(right | wrong))


def test_a_segment_is_numbered_from_one() -> None:
    row = make_plan(2).segments[0]
    values = {name: getattr(row, name) for name in SegmentPlan.__dataclass_fields__}
    assert SegmentPlan(**values) == row
    with pytest.raises(PlanError, match="greater than or equal to 1"):
        SegmentPlan(**(values | {"j": 0}))
