"""Rows of plans of windows that are too many, too few or out of order; those of one window stand in test_plan.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pararealize.coarse.spec import CorrectionPlan
from pararealize.plan.numbering import numbering_faults
from pararealize.plan.plan import Plan
from tests.plans import windows_plan

ROWS = ("segments", "adapters", "coarse_blocks")


def faults_of(plan: Plan, **changes: Any) -> list[str]:
    rows = {name: getattr(plan, name) for name in (*ROWS, "corrections")}
    return numbering_faults(**rows | {"n": plan.n, "source": plan.source} | changes)


def correction(m: int, j: int, plan: Plan) -> CorrectionPlan:
    row = plan.segments[0]
    sizes = {name: getattr(row, name) for name in ("parameters", "flops_forward", "flops_backward")}
    costs = {"cost_forward": 0.0, "cost_backward": 0.0}
    return CorrectionPlan(m=m, j=j, kind="dense", rank=0, y=row.y, differs=True, reads_x=j == 1, **sizes, **costs)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_row_taken_from_any_plan_leaves_a_fault(lengths: list[int], data: st.DataObject) -> None:
    plan = windows_plan(lengths)
    assert faults_of(plan) == []
    name = data.draw(st.sampled_from([name for name in ROWS if getattr(plan, name)]))
    rows = getattr(plan, name)
    i = data.draw(st.integers(0, len(rows) - 1))
    left = (*rows[:i], *rows[i + 1 :])
    if name == "segments" and i == len(rows) - 1 and len(lengths) > 1 and lengths[-1] == 1:
        return  # without its last window of one segment it is a plan of fewer windows
    assert faults_of(plan, **{name: left})


def test_faults_say_where() -> None:
    plan = windows_plan([1, 3, 2])
    s = plan.segments
    for changes, told in (
        ({"n": 2}, "n = 2 needs as many segments in the longest window, which has 3"),
        (
            {"adapters": plan.adapters[1:]},
            "window 2, 3 segments, needs one adapter and one coarse block fewer; it has 1",
        ),
        (
            {"segments": (s[0], *(dataclasses.replace(row, m=4) for row in s[1:4]), *s[4:])},
            "window 2 of 3 is numbered 4",
        ),
        ({"segments": s[:4]}, "there are adapters or coarse blocks of windows that have no segments"),
        ({"source": "input"}, "the first window has no adapters, and they read the input"),
        ({"segments": (*s[:4], dataclasses.replace(s[4], j=7), s[5])}, "segment 1 of window 3 is numbered 7"),
        ({"corrections": (correction(1, 1, plan),)}, "corrections K1_1 belong to no segment of a window of several"),
        ({"corrections": (correction(2, 1, plan),) * 2}, "corrections of one segment belong to no segment"),
    ):
        assert any(told in fault for fault in faults_of(plan, **changes)), (told, faults_of(plan, **changes))
    assert faults_of(plan, corrections=(correction(2, 1, plan), correction(3, 2, plan))) == []


def test_a_plan_of_faults_is_not_made() -> None:
    with pytest.raises(ValueError, match="n = 2 needs as many segments"):
        dataclasses.replace(windows_plan([1, 3]), n=2)
