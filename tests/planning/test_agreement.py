"""A plan meets a network: what was changed in it is refused, or leads to the network that it says."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.fuzz_files.mutations import mutated_json
from benchmarks.fuzz_files.targets.networks import Planned, planned
from benchmarks.fuzz_files.targets.plans import wrong_network
from benchmarks.fuzz_files.trial import unreadable
from pararealize import Plan, capture, find_blocks, make_plan, pararealize
from pararealize.errors import CoarseError, PararealizeError, PlanError
from pararealize.plan.transfer import Transfer
from pararealize.planning.agreement import argument_faults, check_plan, window_faults


@pytest.fixture(scope="module")
def rows() -> list[Planned]:
    return planned(2)


@given(st.integers(0, 2**40))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_mutated_plan_is_refused_or_leads_to_the_originals_output(rows: list[Planned], seed: int) -> None:
    random = Random(seed)
    row = random.choice(rows)
    content, change = mutated_json(row.plan.to_json().encode(), random)
    try:
        fault = wrong_network(row, Plan.from_json(content))
    except PararealizeError as error:
        fault = unreadable(str(error))
    assert not fault, change


def changed(plan: Plan, part: str, index: int, **values: Any) -> Plan:
    rows = list(getattr(plan, part))
    rows[index] = dataclasses.replace(rows[index], **values)
    return dataclasses.replace(plan, **{part: tuple(rows)})


def test_what_only_the_network_can_tell(rows: list[Planned]) -> None:
    """Rows that agree with each other, and not with the network; at its sizes and at others."""
    paper = rows[0]
    chain = find_blocks(capture(paper.model, paper.x))
    check_plan(chain, paper.plan)
    larger = find_blocks(capture(paper.model, torch.cat([paper.x] * 2, 2)))
    check_plan(larger, paper.plan)
    units, kernel = paper.plan.coarse_blocks[0].units, rows[1].plan.coarse_blocks[0].kernel
    for plan, fault in (
        (changed(paper.plan, "adapters", 0, recipe="conv"), "C2 from 3×8×8 to"),
        (changed(paper.plan, "adapters", 1, parameters=1), "C3 has .* parameters, not 1"),
        (changed(paper.plan, "coarse_blocks", 0, units=units + 1), f"F1, 'paper' of {units + 1} units, has"),
        (changed(rows[1].plan, "coarse_blocks", 0, kernel=kernel + 2), "F1, 'depthwise' of 1 units, has"),
    ):
        for network in (chain, larger):
            with pytest.raises(PlanError, match=f"this plan is not as it was made: .*{fault}"):
                check_plan(network, plan)
    for plan, fault in (
        (changed(paper.plan, "segments", 0, first_block="x", last_block="x"), "segment 1's first block: 1, not x"),
        (changed(paper.plan, "segments", 0, parameters=7), "segment 1's parameters: .*, not 7"),
        (dataclasses.replace(paper.plan, head=dataclasses.replace(paper.plan.head, parameters=7)), "head's parameters"),
    ):
        with pytest.raises(PlanError, match=fault):
            check_plan(chain, plan)


def test_a_space_of_another_kind_under_the_networks_own_fingerprint(rows: list[Planned]) -> None:
    paper = rows[0]
    text = paper.plan.to_json().replace('"dtype": "float32"', '"dtype": "float64"')
    chain = find_blocks(capture(paper.model, paper.x))
    with pytest.raises(PlanError, match=r"input: 4×8×8 \(channels on axis 0, float32\), not 4×8×8 .* float64\)"):
        check_plan(chain, Plan.from_json(text))
    data = json.loads(paper.plan.to_json())
    for row in data["adapters"]:
        row["x"]["shape"] = [3, 9, 9]
    with pytest.raises(PlanError, match=r"C2 reads 3×9×9 .*, and the input is 3×8×8"):
        check_plan(chain, Plan.from_json(json.dumps(data)))


def test_blocks_of_a_callable_need_the_callable() -> None:
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), torch.randn(2, 4)

    def small(segment: nn.Module, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> nn.Module:
        return nn.Linear(*x_shape, *y_shape)

    plan = pararealize(model, 2, example_inputs=x, coarse=small).plan
    assert pararealize(model, plan=plan, example_inputs=x, coarse=small).plan is plan
    with pytest.raises(CoarseError, match="F1 was built by a callable, which no plan holds, and coarse is None"):
        pararealize(model, plan=plan, example_inputs=x)


def test_what_is_asked_for_may_not_contradict_the_plan(rows: list[Planned]) -> None:
    plan = rows[0].plan
    starts = [segment.first_block for segment in plan.segments]
    asked = {"n": plan.n, "coarse": "paper", "source": plan.source, "cost": "flops", "windows": 1, "sequential": 0}
    asked["granularity"] = "repeated"
    assert len(argument_faults(plan, {"granularity": "finest"})) == 1
    assert argument_faults(plan, asked | {"cuts": starts[1:], "transfer": None}) == []
    assert argument_faults(plan, dict.fromkeys((*asked, "cuts", "transfer"))) == []
    with pytest.raises(PlanError, match=r"n is 1 and the plan is for .*; and coarse is 'linear', and the plan says "
                       r"'paper'; .* cuts is 'paper', .*source is 'stem'.*cost is 'seconds'"):  # fmt: skip
        pararealize(rows[0].model, 1, plan=plan, coarse="linear", cuts="paper", source="stem", cost="seconds")
    for name, value in (("cuts", [starts[0]]), ("transfer", Transfer())):
        assert len(argument_faults(plan, {name: value})) == 1
    assert "<lambda>" in argument_faults(plan, {"coarse": lambda *_: nn.Identity()})[0]


PERCEPTRON = torch.randn(2, 8)


@settings(deadline=None, max_examples=20, phases=[Phase.generate])
@given(st.data())
def test_a_plan_goes_with_the_windows_it_was_made_with_and_not_with_others(data: st.DataObject) -> None:
    """Of blocks alike: what is asked for beside a plan is what made it, or makes the same windows."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(8)))
    chain = find_blocks(capture(model, PERCEPTRON))
    names = [block.name for block in chain.blocks]

    def draw() -> dict[str, Any]:
        kept = data.draw(st.sets(st.integers(0, 7), max_size=4) | st.integers(0, 3))
        still = set(range(kept)) if isinstance(kept, int) else kept
        begins = data.draw(st.sets(st.integers(0, 7), min_size=1, max_size=3)) - still
        windows = sorted(names[i] for i in begins) or 1
        return {"windows": windows, "sequential": kept if isinstance(kept, int) else sorted(names[i] for i in kept)}

    def spans(plan: Plan) -> list[tuple[int, int, int]]:
        return [(window.first, window.last, window.n) for window in plan.windows]

    asked, others = draw(), draw()
    try:
        plan, other = make_plan(chain, 3, **asked), make_plan(chain, 3, **others)
    except PlanError as error:
        assume("the longest window has" not in str(error))
        raise
    assert argument_faults(plan, asked) + window_faults(chain, plan, **asked) == []
    if not (faults := argument_faults(plan, others) + window_faults(chain, plan, **others)):
        assert spans(other) == spans(plan) or others["windows"] == 1
    assert all("the plan has other windows" in fault for fault in faults)


def test_names_in_a_plan_import_nothing(rows: list[Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a plan calls the model, a block, a kind or a device: it is a word, and no module's name."""
    (tmp_path / "planted_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    paper, name = rows[0], "planted_module:Net"
    plan = Plan.from_json(dataclasses.replace(paper.plan, model=f"{name}\0", notes=(name,)).to_json())
    assert plan.class_name == "Pararealplanted_module_Net_"
    assert not wrong_network(paper, plan)
    for path in ("coarse", "cuts", "fingerprint", "source", "unit"):
        try:
            wrong_network(paper, Plan.from_json(json.dumps(json.loads(paper.plan.to_json()) | {path: name})))
        except PararealizeError:
            continue
    assert "planted_module" not in sys.modules
