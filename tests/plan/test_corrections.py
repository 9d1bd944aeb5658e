"""Corrections of a plan follow from its kind and its windows; a file that says otherwise is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pararealize import capture, find_blocks, pararealize
from pararealize.errors import PlanError
from pararealize.models import resnet20
from pararealize.plan import Plan, Timeline, simulate
from pararealize.plan.corrections import correction_faults, correction_shapes, layer_misfits
from tests.added_branches import AddedLinear, batches_of, chain_of

from ..tradeoffs.chains import network


@pytest.fixture(scope="module")
def plan() -> Plan:
    return pararealize(
        network((0.1,) * 5), n=2, windows=2, sequential=1, coarse="low-rank:4", example_inputs=torch.randn(2, 6)
    ).plan


def test_the_planner_makes_these() -> None:
    for coarse in ("linear", "scale", "low-rank", "low-rank:3", "dense"):
        model = resnet20()
        plan = pararealize(model, n=3, windows=2, sequential=1, coarse=coarse).plan
        assert correction_faults(coarse, plan.windows, plan.corrections) == []
        shapes = [shape[:2] for window in plan.windows for shape in correction_shapes(coarse, window)]
        assert shapes == [row.index for row in plan.corrections]
        assert bool(shapes) == (coarse != "linear")


def test_the_speed_up_is_against_the_original_which_has_no_corrections(plan: Plan) -> None:
    """The work of corrections was reckoned among the original's own, and made every plan look faster than it is."""
    assert plan.corrections
    assert plan.speedup == pytest.approx(plan.serial * plan.batch / plan.rate / plan.step, rel=1e-9)
    forward = sum(row.cost_forward for row in (plan.stem, *plan.segments, plan.head))
    for training, work in ((True, plan.serial), (False, forward)):
        timeline = simulate(plan, training=training)
        assert timeline.serial == pytest.approx(work * plan.batch / plan.rate, rel=1e-9)
        assert Timeline.from_json(timeline.to_json()) == timeline
        for wrong in (-1.0, 1e9):
            text = json.dumps(json.loads(timeline.to_json()) | {"corrections": wrong})
            with pytest.raises(PlanError, match=f"corrections take {wrong} s of the segments'"):
                Timeline.from_json(text)


def test_folded_maps_name_layers_that_the_network_has() -> None:
    model, x = chain_of(AddedLinear, 4, 5), batches_of(AddedLinear, 4)[0]
    plan = pararealize(model, n=2, windows=2, sequential=1, coarse="folded", example_inputs=x).plan
    assert correction_faults("folded", plan.windows, plan.corrections) == []
    assert [row.layer for row in plan.corrections] == ["1.down", "2.down", "3.down", "4.down"]
    assert Plan.from_json(plan.to_json()) == plan
    assert f"folded  in {plan.corrections[0].layer}" in str(plan)
    chain = find_blocks(capture(model, x))
    assert layer_misfits(chain, plan.segments, plan.corrections) == []
    row = plan.corrections[0]
    wrong = [dataclasses.replace(row, layer="nowhere"), *plan.corrections[1:]]
    assert layer_misfits(chain, plan.segments, wrong) == [f"{row.name} folds into {row.layer}, not nowhere"]
    with pytest.raises(PlanError, match=f"{row.name} folds into {row.layer}, not nowhere"):
        dataclasses.replace(plan, corrections=tuple(wrong)).check(chain)
    document = json.loads(plan.to_json())
    document["corrections"][0]["layer"] = ""
    with pytest.raises(PlanError, match=f"{row.name} is 'folded' and its layer is ''"):
        Plan.from_json(json.dumps(document))
    del document["corrections"][0]  # a segment may have no such layer
    assert len(Plan.from_json(json.dumps(document)).corrections) == len(plan.corrections) - 1


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda d: d["corrections"].pop(), r"segment 3,2 has no correction, and 'low-rank:4' has one there"),
    (lambda d: d["corrections"][0].update(rank=0), "K2_1's rank is 0, and that of 'low-rank:4' is 4"),
    (lambda d: d["corrections"][1].update(kind="dense"), "K2_2's kind is dense, and that of 'low-rank:4' is low-rank"),
    (lambda d: d["corrections"][0].update(reads_x=False), "K2_1's reads_x is False, and that of 'low-rank:4' is True"),
    (lambda d: d["corrections"][0].update(parameters=1), "K2_1 has 1 parameters, and that of 'low-rank:4' has 1"),
    (lambda d: d["corrections"][0]["y"].update(shape=[7]), "K2_1's y is 7, and that of 'low-rank:4' is 12"),
    (lambda d: d.update(coarse="linear"), "K2_1 is a correction where 'linear' has none"),
    (
        lambda d: d.update(coarse="low-rank:2"),
        "C2_2 is low-rank of rank 4, and that of 'low-rank:2' is low-rank of rank",
    ),
]


@pytest.mark.parametrize("change, fault", CHANGES)
def test_changed_corrections_are_refused_when_the_plan_is_read(plan: Plan, change: Any, fault: str) -> None:
    document = json.loads(plan.to_json())
    assert Plan.from_json(json.dumps(document)) == plan
    change(document)
    with pytest.raises(PlanError, match="this plan cannot be read:\n") as raised:
        Plan.from_json(json.dumps(document))
    assert fault in str(raised.value)
