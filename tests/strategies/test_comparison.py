"""A comparison as text: names out of a model or a file act on no terminal."""

from __future__ import annotations

from pararealize.strategies import StrategyComparison
from pararealize.strategies.replicas import one_device
from tests.strategy_costs import costs_of


def test_names_are_shown_as_they_are():
    row = one_device(costs_of(), 8)
    compared = StrategyComparison(
        model="net\x1b[0m", devices=1, batch=8, device="cpu", memory=1e9, link="none", basis="counted",
        training=(row,), latency=(row,), notes=("a note " * 100,), advice="run it",
    )  # fmt: skip
    text = str(compared)
    assert "net\\x1b[0m: a training step of 8 samples on 1 device" in text
    assert text.endswith("advice: run it")
    assert all(len(line) <= 120 for line in text.splitlines() if line.startswith(("note", "a note")))
    assert compared.fastest is row
