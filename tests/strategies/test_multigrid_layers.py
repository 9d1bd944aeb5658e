"""Layer-parallel rows: the simulation's step, and why there are none."""

from __future__ import annotations

from pararealize.profiles import Link
from pararealize.strategies.multigrid_layers import MultigridLayers
from tests.strategy_costs import costs_of


def test_a_chain_of_residual_blocks():
    layers = MultigridLayers(costs_of())
    assert layers.structure.spans == tuple((i, i + 1) for i in range(8))
    row = layers.fastest(8, 8)
    assert row.devices <= 8
    assert not row.exact
    assert row.speedup == row.work / row.step
    slow = MultigridLayers(costs_of(Link(name="a", latency=1e-2, bandwidth=1e6))).fastest(8, 8)
    assert slow.step > row.step


def test_no_layers():
    layers = MultigridLayers(costs_of())
    layers.__dict__["structure"] = "no chain"
    assert layers.fastest(8, 8) is None
