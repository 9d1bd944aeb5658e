"""What a changed plan says that cannot be, told without a network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from pararealize import Plan
from pararealize.analysis.causality import Causality
from pararealize.coarse.kinds import KINDS
from pararealize.errors import PlanError
from pararealize.plan.consistency import cut_faults, kind_faults, row_faults
from tests.drawn_plans import make_plan

Change = Callable[[dict[str, Any]], Any]
SIDE = {"side": "past", "offset": 0, "stride": 1, "frame": False}

CHANGES: list[tuple[str, Change, str]] = [
    ("an extent of 0", lambda d: d["adapters"][0]["x"].update(shape=[3, 0, 32]), "C2's input cannot be: axis 1 has 0"),
    ("axes", lambda d: d["adapters"][0]["x"].update(shape=[1] * 99), "C2's input cannot be: there are 99 axes"),
    ("a huge sample", lambda d: d["adapters"][0]["x"].update(shape=[2**31] * 3), "a sample has 9903520314283042199192"),
    ("channels", lambda d: d["coarse_blocks"][0]["y"].update(channel=-1), "F1's output cannot be: channels are on"),
    ("no type", lambda d: d["segments"][0]["x"].update(dtype="nn"), "segment 1's input cannot be: 'nn' is no type"),
    ("an integer", lambda d: d["adapters"][0]["x"].update(dtype="int64"), "'int64' is no type of an activation"),
    (
        "a device",
        lambda d: d["segments"][1].update(device="cuda:\n7"),
        r"segment 2 is on 'cuda:\n7', which is no device",
    ),
    (
        "another source",
        lambda d: d["adapters"][1].update(source="stem"),
        "C3 reads the stem, and adapters read the input",
    ),
    ("two inputs", lambda d: d["adapters"][1]["x"].update(shape=[4, 32, 32]), "C3 reads 4×32×32 (channels on axis 0"),
    (
        "no input",
        lambda d: d["adapters"][0]["y"].update(shape=[9]),
        "C2 gives 9 (channels on axis 0, float32), and seg",
    ),
    (
        "element type",
        lambda d: d["coarse_blocks"][0]["x"].update(dtype="float64"),
        "F1 reads 64×32×32 (channels on axis",
    ),
    (
        "a map",
        lambda d: d["coarse_blocks"][0]["y"].update(shape=[64, 32]),
        "F1 gives 64×32 (channels on axis 0, float32)",
    ),
    ("sides", lambda d: d["adapters"][0].update(causal=[SIDE]), "C2 has sides for 1 axes, and 64×32×32 has 2"),
    (
        "strides",
        lambda d: d["adapters"][0].update(causal=[SIDE | {"stride": 0}, None]),
        "C2's sides cannot be: 0 input",
    ),
    ("far", lambda d: d["adapters"][0].update(causal=[SIDE | {"offset": -(10**30)}, None]), "is further away than"),
    (
        "nothing left",
        lambda d: d["adapters"][0].update(causal=[SIDE | {"offset": 32}, None]),
        "which leaves nothing",
    ),
    (
        "an average",
        lambda d: d["coarse_blocks"][1].update(causal=[SIDE | {"stride": 3}, None]),
        "F2 would average axis 1",
    ),
    ("unclear", lambda d: d["adapters"][0].update(causal=[SIDE | {"side": "unclear"}, None]), "C2 needs an axis of"),
    ("no kind", lambda d: d["coarse_blocks"][0].update(kind="depthwis"), "F1 is of kind 'depthwis'; there are paper"),
    ("a kind", lambda d: d["coarse_blocks"][0].update(kind="linear", units=0), "F1 is 'linear', and where 'paper' is"),
    ("a callable", lambda d: d.update(coarse="small"), "F1 is 'paper', and 'small' was asked for"),
    ("units", lambda d: d["coarse_blocks"][0].update(units=0), "F1 has 0 units, and 'paper' has one or more"),
    ("too many", lambda d: d["coarse_blocks"][0].update(units=2**40), "F1 has 1099511627776 units with 500000 param"),
    ("a kernel", lambda d: d["coarse_blocks"][0].update(kernel=3), "F1's convolution is 3 wide, and 'paper' has none"),
    ("cuts", lambda d: d.update(cuts="coast"), "cuts are 'coast', not 'cost', 'paper' or names"),
    ("names of cuts", lambda d: d.update(cuts=["a", "b"]), "cuts are at 'a', 'b', and segments begin at 'stage2.10', "),
]


@pytest.mark.parametrize("change, fault", [pytest.param(*row, id=name) for name, *row in CHANGES])
def test_a_changed_plan_is_refused_when_it_is_read(change: Change, fault: str) -> None:
    document = json.loads(make_plan(3).to_json())
    assert Plan.from_json(json.dumps(document)).n == 3
    change(document)
    with pytest.raises(PlanError, match="this plan cannot be read:\n") as raised:
        Plan.from_json(json.dumps(document))
    assert fault in str(raised.value)


def test_all_faults_are_told_together() -> None:
    plan = make_plan(3)
    adapters = [dataclasses.replace(row, source="stem", causal=(Causality(side="past"),)) for row in plan.adapters]
    faults = row_faults(plan.segments, adapters, plan.coarse_blocks, "input")
    assert [fault[:2] for fault in faults] == ["C2", "C2", "C3", "C3"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_a_plan_may_have(kind: str) -> None:
    """Of what was asked for, or any where the library was to choose."""
    plan = make_plan(2)
    units = 1 if kind in ("paper", "depthwise", "block") else 0
    rows = [dataclasses.replace(plan.coarse_blocks[0], kind=kind, units=units, kernel=7 * (kind == "depthwise"))]
    assert kind_faults(kind, rows) == kind_faults("auto", rows) == []
    assert len(kind_faults("another", rows)) == 1
    custom = [dataclasses.replace(rows[0], kind="custom", units=0, kernel=0)]
    assert kind_faults("another", custom) == []
    assert len(kind_faults("auto", custom)) == 1


def test_cuts_by_name_may_name_the_first_block_too() -> None:
    plan = make_plan(3)
    names = [segment.first_block for segment in plan.segments]
    for cuts in ("cost", "paper", tuple(names[1:]), tuple(reversed(names))):
        assert cut_faults(cuts, plan.segments) == []
    assert cut_faults(tuple(names[:-1]), plan.segments)


def test_a_plan_for_another_machine_is_read() -> None:
    for device in ("cuda:7", "xpu", "cpu", "meta", "privateuseone:1"):
        rows = tuple(dataclasses.replace(row, device=device) for row in make_plan(2).segments)
        plan = dataclasses.replace(make_plan(2), segments=rows)
        assert Plan.from_json(plan.to_json()) == plan
