"""What is printed: every number of a plan, every block of a network, every refused cut."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from pararealize import models
from pararealize.coarse.spec import CorrectionPlan
from pararealize.plan.plan import Plan
from pararealize.table import count
from pararealize_cli import report
from tests.drawn_plans import cost, in_windows, make_plan


def test_plan_tables_show_every_part():
    plan = make_plan(3, notes=("pay attention",))
    shown = report.text(report.plan_tables(plan))
    for part in ["stem", "g1", "g2", "g3", "head", "C2", "C3", "F1", "F2", "stage1.0", "stage3.29", "256×8×8", "870.0k",
                 "conv 1×1", "note: pay attention", f"{plan.virtual_speedup:.2f}×"]:  # fmt: skip
        assert part in shown
    assert f"{count(plan.serial)} operations a sample in sequence" in shown


def test_plan_of_one_segment_has_no_coarse_network():
    shown = report.text(report.plan_tables(make_plan(1)))
    assert "coarse network" not in shown
    assert "1 segment, cuts cost" in shown


def test_windows_are_named_in_every_row():
    plan = in_windows(make_plan(3), 1, 3, 2)
    scale = {"kind": "scale", "rank": 0, "differs": True, "reads_x": False, "y": plan.segments[0].y, "parameters": 64}
    plan = replace(plan, corrections=(CorrectionPlan(m=2, j=3, **scale, **cost(1e5)),), coarse="scale")
    shown = report.text(report.plan_tables(plan))
    for part in ["3 windows of at most 3 segments", "g1_1", "g3_2", "C2_3", "F3_1", "the value before their window",
                 "with 3 devices", "output corrections", "K2_3", "scale"]:  # fmt: skip
        assert part in shown


def test_seconds_are_called_seconds():
    shown = report.text(report.plan_tables(make_plan(2, unit="seconds")))
    assert "operations a sample" not in shown
    assert "s at batch 2 in sequence" in shown


def test_plan_json_holds_the_plan():
    plan = make_plan(3)
    value = json.loads(json.dumps(report.plan_json(plan)))
    assert Plan.from_json(json.dumps(value["plan"])) == plan
    assert value["predicted"]["virtual_speedup"] == plan.virtual_speedup
    assert value["parameters"]["total"] == plan.parameters.total


@pytest.fixture(scope="module")
def resnet():
    return report.inspection(models.resnet20())


def test_inspection_joins_equal_neighbours(resnet):
    shown = str(resnet)
    assert "9 blocks in 3 stages" in shown
    assert "stage1.0 – stage1.2 (3 equal)" in shown
    assert "stage2.1 – stage2.2 (2 equal)" in shown
    every = report.text(report.inspection_tables(resnet, every=True))
    assert "equal" not in every
    assert "stage1.1" in every
    assert "5×5" in shown  # two 3×3 convolutions


def test_inspection_names_refused_cuts(resnet):
    shown = str(resnet)
    refused = resnet.chain.refused
    assert f"{len(refused)} cut points refused" in shown
    assert "--all shows them" in shown
    every = report.text(report.inspection_tables(resnet, every=True), width=1000)
    assert all(f"after {cut.after} " in every for cut in refused)


def test_inspection_json(resnet):
    value = json.loads(json.dumps(report.inspection_json(resnet)))
    assert [block["name"] for block in value["blocks"]] == [b.name for b in resnet.chain.blocks]
    assert value["blocks"][0]["x"] == "16×32×32"
    assert (
        value["blocks"][0]["cost"]["flops_forward"] == 2 * 2 * 9 * 16 * 16 * 32 * 32
    )  # two 3×3 convolutions, 16 to 16
    assert value["stages"] == [[0, 2], [3, 5], [6, 8]]
    assert len(value["refused"]) == len(resnet.chain.refused)
    parts = [value["stem"], *value["blocks"], value["head"]]
    assert sum(part["parameters"] for part in parts) == sum(p.numel() for p in models.resnet20().parameters())


class Rolled(nn.Module):
    """A block with an operation that no receptive-field rule knows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + torch.cummax(self.conv(x), dim=2).values


def test_an_unknown_operation_is_named_in_its_row():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Rolled(), Rolled(), Rolled(), nn.Flatten(), nn.Linear(256, 2))
    found = report.inspection(net, torch.randn(2, 3, 8, 8))
    assert "no receptive-field rule" in found.fields[0]
    assert "no receptive-field rule" in " ".join(str(found).split())


def test_training_summary():
    assert report.training_summary([2.0], seconds=1.0).startswith("loss 2.000 -> 2.000")
