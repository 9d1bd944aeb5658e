"""Names, numbers, order and labels of parts."""

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
    Part(kind="head", home=4, target="head"),
]
OF_WINDOWS = [
    Part(kind="segment", m=1, j=2, home=2, target="segments.g1_2"),
    Part(kind="adapter", m=2, j=2, home=2, target="adapters.C2_2"),
    Part(kind="coarse", m=2, j=1, home=2, target="coarse.F2_1"),
]


def test_names_and_numbers() -> None:
    assert [part.name for part in PARTS] == ["stem", "context", "C3", "g1", "g3", "F2", "f0", "head"]
    assert [part.name for part in OF_WINDOWS] == ["g1_2", "C2_2", "F2_1"]
    assert [part.index for part in (*OF_WINDOWS, PARTS[3])] == [(1, 2), (2, 2), (2, 1), (0, 1)]


def test_they_sort_in_forward_order() -> None:
    assert sorted({*PARTS}, key=lambda part: part.order) == PARTS
    stem, head = PARTS[0], PARTS[-1]
    assert sorted({*OF_WINDOWS, stem, head}, key=lambda part: part.order) == [stem, *OF_WINDOWS, head]


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
    assert [part.label() for part in OF_WINDOWS] == ["segment 1,2", "adapter C^2,2", "coarse block F^2,1"]


@pytest.mark.parametrize("target, itself", [("coarse.F1", False), ("segments.g2", True)])
def test_a_coarse_block_that_is_the_segment_itself(target: str, itself: bool) -> None:
    assert Part(kind="coarse", j=1, target=target).is_segment_itself == itself
    assert not Part(kind="segment", j=2, target="segments.g2").is_segment_itself
