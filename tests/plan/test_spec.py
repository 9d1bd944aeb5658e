"""Rows for the network's own parts: numbers that can be, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pararealize.errors import PlanError
from pararealize.plan.spec import PartPlan, SegmentPlan, windows_of
from tests.drawn_plans import cost, in_windows, make_plan


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
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(SegmentPlan)}
    assert SegmentPlan(**values) == row
    with pytest.raises(PlanError, match="greater than or equal to 1"):
        SegmentPlan(**(values | {"j": 0}))


def test_windows_group_rows_and_the_last_ends_on_the_last_device() -> None:
    plan = in_windows(make_plan(3), 3, 1, 2)
    windows = windows_of(plan.segments, plan.adapters, plan.coarse_blocks)
    assert [(w.m, w.n, w.offset, w.first, w.last, w.sequential) for w in windows] == [
        (1, 3, 0, 0, 29, False), (2, 1, 0, 30, 39, True), (3, 2, 1, 40, 59, False),
    ]  # fmt: skip
    assert [[row.name for row in w.segments] for w in windows] == [["g1_1", "g1_2", "g1_3"], ["g2_1"], ["g3_1", "g3_2"]]
    assert [[row.name for row in w.adapters] for w in windows] == [["C1_2", "C1_3"], [], ["C3_2"]]
    assert [[row.name for row in w.coarse_blocks] for w in windows] == [["F1_1", "F1_2"], [], ["F3_1"]]
    (alone,) = make_plan(2).windows
    assert (alone.m, alone.segments[0].m, alone.segments[0].name, alone.segments[0].label) == (1, 0, "g1", "segment 1")
    assert plan.segments[4].label == "segment 3,1"
