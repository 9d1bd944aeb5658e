"""A row as plain data."""

from __future__ import annotations

import json

from pararealize.strategies.parareal import PararealPlans
from pararealize.strategies.replicas import one_device
from tests.strategy_costs import costs_of


def test_as_json():
    costs = costs_of()
    row = PararealPlans(costs).strategy(2, 1, 8, "linear").to_dict()
    assert json.loads(json.dumps(row))["plan"]["n"] == 2
    assert row["speedup"] == row["work"] / row["step"]
    assert row["utilisation"] == row["speedup"] / 2
    assert one_device(costs, 8).to_dict()["plan"] is None
