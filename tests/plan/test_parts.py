"""Names, homes, order and labels of parts."""

from __future__ import annotations

import pytest

from pararealize.plan.parts import Part
from tests.drawn_plans import make_plan

PARTS = [
    Part(kind="stem", target="stem"),
    Part(kind="context", target="context"),
    Part(kind="adapter", j=3, target="adapters.C3"),
    Part(kind="segment", j=1, target="segments.g1"),
    Part(kind="segment", j=3, target="segments.g3"),
    Part(kind="coarse", j=2, target="coarse.F2"),
    Part(kind="layer", j=0, target="f0"),
    Part(kind="head", target="head"),
]


def test_names_and_homes() -> None:
    assert [part.name for part in PARTS] == ["stem", "context", "C3", "g1", "g3", "F2", "f0", "head"]
    assert [part.home_segment(4) for part in PARTS if part.kind != "layer"] == [1, 1, 3, 1, 3, 3, 4]


def test_they_sort_in_forward_order() -> None:
    assert sorted({*PARTS}, key=lambda part: part.order) == PARTS


def test_labels() -> None:
    plan = make_plan(3)
    first, last = plan.segments[2].first_block, plan.segments[2].last_block
    assert [part.label(plan) for part in PARTS] == [
        "the stem C^1",
        "the context",
        "adapter C^3",
        f"segment 1 ({plan.segments[0].first_block} to {plan.segments[0].last_block})",
        f"segment 3 ({first} to {last})",
        "coarse block F^2",
        "layer 0",
        "the head",
    ]
    assert PARTS[3].label() == "segment 1"


@pytest.mark.parametrize("target, itself", [("coarse.F1", False), ("segments.g2", True)])
def test_a_coarse_block_that_is_the_segment_itself(target: str, itself: bool) -> None:
    assert Part(kind="coarse", j=1, target=target).is_segment_itself == itself
    assert not Part(kind="segment", j=2, target="segments.g2").is_segment_itself
