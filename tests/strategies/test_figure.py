"""A picture of curves, which appears whole, and equal ones for equal curves."""

from __future__ import annotations

import dataclasses

import pytest

from pararealize.errors import OutputError
from pararealize.strategies import CurvePoint, StrategyComparison
from pararealize.strategies.figure import draw_strategies

POINTS = tuple(
    CurvePoint(axis=axis, value=2**k, name=name, speedup=1.5**k, fits=True)
    for axis in ("devices", "batch")
    for name in ("data parallel", "pipeline", "parareal")
    for k in range(1, 4)
)


def test_equal_curves_give_equal_files(tmp_path):
    compared = StrategyComparison(
        model="net$", devices=8, batch=8, device="cpu", memory=1e9, link="none", basis="", training=(), latency=(),
        curves=POINTS,
    )  # fmt: skip
    one, other = (draw_strategies(compared, tmp_path / f"{name}.svg").read_bytes() for name in "ab")
    assert one == other
    assert draw_strategies(dataclasses.replace(compared, curves=POINTS[:3]), tmp_path / "c.png").exists()
    with pytest.raises(OutputError, match=r"ends in '.gif'"):
        draw_strategies(compared, tmp_path / "a.gif")
