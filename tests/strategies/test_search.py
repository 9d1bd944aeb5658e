"""The whole comparison of a small network, and every fault of the arguments before any work."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from pararealize.errors import CoarseError, ModelError, PlanError, ProfileError
from pararealize.profiles import PROFILES
from pararealize.strategies import plan_strategies
from pararealize.strategies.figure import draw_strategies
from tests.strategy_costs import FREE, network


@pytest.fixture(scope="module")
def compared():
    return plan_strategies(network(), torch.randn(2, 4), devices=4, batch_size=4, profile="cpu", name="net")


def test_rows_are_sorted(compared):
    steps = [row.step for row in compared.training]
    assert steps == sorted(steps)
    names = {row.name.partition(",")[0] for row in compared.training}
    assert {"one device", "data parallel", "pipeline", "parareal", "layer-parallel multigrid"} <= names
    assert compared.fastest is compared.training[0]
    assert [row.step for row in compared.latency] == sorted(row.step for row in compared.latency)
    one = next(row for row in compared.training if row.name == "one device")
    assert all(row.work == pytest.approx(one.step) for row in compared.training)
    for row in compared.training:
        assert row.devices <= 4
        assert 0 < row.utilisation <= 1 + 1e-9


def test_text_and_json(compared):
    text = str(compared)
    assert "net: a training step of 4 samples on 4 devices (cpu, 16.00GB each; gloo" in text
    assert "advice: " in text
    assert all(len(line) <= 140 for line in text.splitlines())
    document = json.loads(compared.to_json())
    assert document["version"] == 1
    assert [row["step"] for row in document["training"]] == [row.step for row in compared.training]
    assert {point["axis"] for point in document["curves"]} == {"devices", "batch"}


def test_picture(compared, tmp_path):
    assert draw_strategies(compared, tmp_path / "curves.svg").read_text().startswith("<?xml")


def test_nothing_fits():
    small = dataclasses.replace(PROFILES["cpu"], memory=1000.0)
    compared = plan_strategies(
        network(), torch.randn(2, 4), devices=2, batch_size=2, profile=small, link=FREE, curves=False
    )
    assert compared.fastest is None
    assert compared.advice.startswith("nothing fits")
    assert "too large" in str(compared)
    with pytest.raises(PlanError, match="no curves"):
        draw_strategies(compared, "curves.svg")


def test_measured_here():
    compared = plan_strategies(
        network(4), torch.randn(2, 4), devices=2, batch_size=4, profile="cpu", measure=True, curves=False
    )
    assert "measured here" in str(compared)
    with torch.device("meta"):
        model, x = network(4), torch.empty(2, 4)
    with pytest.raises(ModelError, match="meta device; leave measure out"):
        plan_strategies(model, x, devices=2, batch_size=4, measure=True)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"devices": 0}, PlanError, "devices is 0; pass 1 to 1024"),
        ({"devices": 2000, "batch_size": 0}, PlanError, "devices is 2000; pass 1 to 1024; and batch_size is 0"),
        ({"batch_size": 10}, PlanError, "batch_size is 10, which does not divide among 4 devices; pass 8 or 12"),
        ({"devices": 2.5}, PlanError, "devices is 2.5"),
        ({"optimizer": "lion"}, PlanError, "optimizer is 'lion'"),
        ({"profile": "h10"}, ProfileError, "no device profile 'h10'"),
        ({"link": "string"}, ProfileError, "has no link 'string'"),
        ({"coarse": "papers"}, CoarseError, "no coarse kind 'papers'"),
    ],
)
def test_faults_before_any_work(change, error, message):
    with pytest.raises(error) as raised:
        plan_strategies(None, **({"devices": 4, "batch_size": 8} | change))
    assert message in str(raised.value)
