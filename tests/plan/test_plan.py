"""Plans: the arithmetic of the critical path, JSON there and back, everything that cannot be a plan, and the text."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.cost import count_costs
from pararealize.analysis.fields.field import receptive_fields
from pararealize.errors import PlanError
from pararealize.plan.plan import Plan, plan_text
from pararealize.planning.search import plan_segments
from pararealize.tracing.front_end import capture
from tests.drawn_plans import make_plan


def chain_of(model: nn.Module, x: torch.Tensor):
    return find_blocks(capture(model, x, check=False))


@pytest.fixture(scope="module")
def layers():
    return chain_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.randn(2, 4))


def made_for(chain, n=2, **options) -> Plan:
    return plan_segments(chain, receptive_fields(chain), count_costs(chain), n, **options)


@pytest.mark.parametrize("source", ["input", "stem"])
def test_critical_path_by_hand(source):
    """Uneven segments, so that the maximum of the recursion is now the one and now the other."""
    plan = make_plan(3, source=source, uneven=True)
    (s1, s2, s3), (c1, c2), (a2, a3) = plan.segments, plan.coarse_blocks, plan.adapters
    wait = plan.stem.cost_forward if source == "stem" else 0
    t1 = plan.stem.cost_forward + s1.cost_forward
    t2 = max(wait + a2.cost_forward + s2.cost_forward, t1) + c1.cost_forward
    t3 = max(wait + a3.cost_forward + s3.cost_forward, t2) + c2.cost_forward
    assert wait + a2.cost_forward + s2.cost_forward > t1
    ready = plan.head.cost_backward + c2.cost_backward  # when the gradients of z_2 and y_3 are there
    last = plan.stem.cost_backward if source == "stem" else 0
    ends = [
        ready + s3.cost_backward + a3.cost_backward + last,
        ready + c1.cost_backward + s2.cost_backward + a2.cost_backward + last,
        ready + c1.cost_backward + s1.cost_backward + plan.stem.cost_backward,
    ]
    assert plan.critical_path == pytest.approx(t3 + plan.head.cost_forward + max(ends))
    assert plan.serial == plan.stem.cost + s1.cost + s2.cost + s3.cost + plan.head.cost
    assert plan.virtual_speedup == plan.serial / plan.critical_path
    assert make_plan(1).virtual_speedup == 1


def test_parameters_add_up():
    plan = make_plan(3)
    assert plan.parameters.original == 432 + 3082 + 3 * 870_000 + 6
    assert (plan.parameters.adapters, plan.parameters.coarse) == (256 * 5, 1_000_000)
    assert plan.parameters.total == plan.parameters.original + 256 * 5 + 1_000_000


def test_json_there_and_back(layers):
    named = made_for(layers, 3, cuts=["1", "3"], coarse="linear")
    for plan in (named, make_plan(12, uneven=True), make_plan(1), make_plan(2, source="stem", unit="seconds")):
        again = Plan.from_json(plan.to_json())
        assert again == plan
        assert str(again) == str(plan)
    Plan.from_json(named.to_json()).check(layers)
    assert Plan.schema()["properties"]["version"]["default"] == 2


def broken(plan: Plan, change) -> str:
    data = json.loads(plan.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(version=7), "version 7, this release reads version 2; make the plan again"),
        (lambda d: d.pop("version"), 'it has no "version"'),
        (lambda d: d.pop("fingerprint"), "fingerprint: Field required"),
        (lambda d: d.update(colour="red"), "colour: Unexpected keyword"),
        (lambda d: d["segments"][0].update(blocks="many"), "segments.0.blocks"),
        (lambda d: d["segments"].pop(), "n = 3 needs as many segments"),
        (lambda d: d["segments"][1].update(first=1), "segment 2 begins at block 1, segment 1 ends at"),
        (lambda d: d["segments"][0].update(first=1), "segment 1 begins at block 1, not 0"),
        (
            lambda d: d["segments"][1].update(x={"shape": [4], "channel": 0}),
            "segment 2 reads 4, segment 1 gives 64×32×32",
        ),
        (lambda d: d["segments"][2].update(blocks=9), "segment 3 holds blocks 20 to 29, which is not 9"),
        (lambda d: d["segments"][2].update(last=19, blocks=0), "segment 3 holds blocks 20 to 19, which is not 0"),
        (lambda d: d["coarse_blocks"][1].update(j=9), "coarse block 2 is numbered 9"),
        (lambda d: d["adapters"][0].update(j=1), "adapter 2 is numbered 1"),
        (lambda d: d["segments"][2].update(j=4), "segment 3 is numbered 4"),
        (lambda d: d.update(n=0, segments=[], adapters=[], coarse_blocks=[]), "n = 0 needs as many segments"),
        (lambda d: d["head"].update(cost=float("inf")), "head.cost"),
    ],
)
def test_plans_that_cannot_be_read(change, message):
    plan = make_plan(3)
    with pytest.raises(PlanError) as raised:
        Plan.from_json(broken(plan, change))
    assert message in str(raised.value)


def test_text_that_is_no_plan():
    for text in ("", "{", "[1]", "7"):
        with pytest.raises(PlanError, match=r"this is not (JSON|a plan)"):
            Plan.from_json(text)


def test_a_changed_copy_is_refused():
    plan = make_plan(2)
    for change, told in (
        (
            {"n": 3},
            "no Plan can be made so: n = 3 needs as many segments in the longest window, which has 2; ",
        ),
        ({"source": "head", "batch": -1}, "source: Input should be 'input' or 'stem'; batch: Input should be greater"),
    ):
        with pytest.raises(PlanError, match=told):
            dataclasses.replace(plan, **change)


def test_a_plan_for_another_network(layers):
    plan = made_for(layers)
    plan.check(layers)
    wide = chain_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).double(), torch.randn(2, 4).double())
    plan.check(wide)  # another element type is another size
    with pytest.raises(PlanError, match=r"another network: .*, of the same sizes, with other operations or settings"):
        dataclasses.replace(plan, fingerprint="0" * 16).check(layers)
    other = chain_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))), torch.randn(2, 4))
    with pytest.raises(
        PlanError, match=r"another network: Sequential with 4 blocks from 0 to 3 .*, not Sequential with 5 blocks"
    ):
        plan.check(other)


# The table that a plan prints: narrow, aligned, complete -----------------------------------------------------------


@pytest.mark.parametrize(
    "plan", [make_plan(12, name="a.very.long.name.of.a.stage{stage}.in.a.network.{i}"), make_plan(3)]
)
def test_the_table_is_narrow_and_complete(plan):
    text = str(plan)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0] == f"PreActResNet: n = {plan.n}, coarse 'paper', cuts 'cost', adapters read the input"
    rows = [line.split()[0] for line in lines if line.strip()]
    order = ["g", "stem", *(str(s.j) for s in plan.segments), "head", "C", *(str(a.j) for a in plan.adapters), "F"]
    assert rows[1:] == [*order, *(str(f.j) for f in plan.coarse_blocks), "parameters:", "one", "speed-up:"]


def test_rows_hold_the_numbers_of_the_plan():
    plan = make_plan(3, uneven=True)
    text = plan_text(plan)
    rows = [line.split() for line in text.splitlines()]
    first = ["1", "stage1.0", "stage1.9", "10", "64×32×32", "64×32×32", "870.0k", "0.333", "0.667", "cuda:0"]
    for row in (
        ["stem", "432", "0.001", "0.002"],
        first,
        ["head", "3.1k", "0.000", "0.000"],
        ["3", "3×32×32", "128×16×16", "conv", "1×1", "768", "1.00"],
        ["1", "paper", "×", "1", "64×32×32", "128×16×16", "500.0k", "0.200", "0.400"],
    ):
        assert row in rows
    p = plan.parameters
    assert f"parameters: {p.original / 1e6:.2f}M original + 1.3k adapters + 1.00M coarse = {p.total / 1e6:.2f}M" in text
    assert f"{plan.serial:.4g} operations a sample in sequence, {plan.critical_path:.4g} on the longest path" in text
    assert f"speed-up:   {plan.virtual_speedup:.2f}×" in text


def test_columns_are_as_wide_as_their_widest_cell():
    lines = plan_text(make_plan(12)).splitlines()
    head = next(line for line in lines if line.startswith("g "))
    rows = [line for line in lines[lines.index(head) + 1 :][:14] if line.strip()]
    for column in ("first block", "last block", "input", "output", "device"):
        at = head.index(column)
        for row in rows[1:-1]:
            assert row[at - 2 : at] == "  "
            assert row[at] != " "
    for column in ("blocks", "params", "GFLOPs", "backward"):
        end = head.index(column) + len(column)
        assert all(row[end - 1] != " " and row[end : end + 2] == "  " for row in rows[1:-1])


def test_what_is_printed_only_where_it_says_something():
    one = plan_text(make_plan(1, notes=("first", "second")))
    assert "recipe" not in one
    assert "kind" not in one
    assert one.endswith("note: first\nnote: second")
    assert "note" not in plan_text(make_plan(2))
    seconds = plan_text(make_plan(2, unit="seconds", source="stem"))
    assert "seconds a batch of 2 in sequence" in seconds
    assert "adapters read the stem" in seconds
    plan = make_plan(2)
    assert "cuts 'by name'" in plan_text(dataclasses.replace(plan, cuts=("stage1.9",)))
    wide = dataclasses.replace(plan, coarse_blocks=(dataclasses.replace(plan.coarse_blocks[0], units=2, kernel=7),))
    assert "paper  × 2, 7 wide  64×32×32" in plan_text(wide)


def test_long_lines_are_cut_off_and_long_names_lose_their_middle():
    text = plan_text(make_plan(2, name="a" * 20 + ".{stage}.{i}" + "z" * 20, notes=("n" * 200,)))
    assert "aaaaaaaaaa…zzzzzzzzzzz" in text
    lines = text.splitlines()
    assert len(lines[-1]) == 120
    assert lines[-1].endswith("nn…")
    exact = plan_text(make_plan(2, name="b" * 22))
    assert "b" * 22 in exact
    assert "…" not in exact
