"""Plans: the arithmetic of the critical path, JSON there and back, and everything that cannot be a plan."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.cost import count_costs
from pararealize.analysis.fields.field import receptive_fields
from pararealize.errors import PlanError
from pararealize.plan.plan import Plan, fingerprint
from pararealize.planning.search import plan_segments
from pararealize.tracing.front_end import capture
from tests.handmade import make_plan


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
    assert Plan.schema()["properties"]["version"]["default"] == 1


def broken(plan: Plan, change) -> str:
    data = json.loads(plan.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(version=7), "version 7, this release reads version 1; make the plan again"),
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


def test_a_plan_for_another_network(layers):
    plan = made_for(layers)
    plan.check(layers)
    other = chain_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))), torch.randn(2, 4))
    with pytest.raises(
        PlanError, match=r"another network: Sequential with 4 blocks from 0 to 3 .*, not Sequential with 5 blocks"
    ):
        plan.check(other)


def test_fingerprints_depend_on_structure_and_not_on_weights_or_the_batch(layers):
    def linear(out=4):
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, out))

    again = fingerprint(chain_of(linear(), torch.randn(7, 4)))
    assert fingerprint(layers) == again
    assert len(again) == 16
    assert int(again, 16) >= 0
    assert fingerprint(chain_of(linear(5), torch.randn(2, 4))) != again
    assert fingerprint(chain_of(nn.Sequential(linear()), torch.randn(2, 4))) != again, "other names"
