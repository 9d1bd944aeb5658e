"""Advice: exact where that is as fast, the command that measures quality where not, and what would fit."""

from __future__ import annotations

import dataclasses

from pararealize.coarse.evidence_table import Choice
from pararealize.strategies.advice import advise, known_quality
from pararealize.strategies.parareal import PararealPlans
from pararealize.strategies.replicas import data_parallel, one_device
from tests.strategy_costs import costs_of

HOW = {"devices": 4, "batch": 8, "memory": 1e9}


def rows():
    costs = costs_of()
    plans = PararealPlans(costs)
    return one_device(costs, 8), data_parallel(costs, 4, 8), plans.strategy(4, 1, 8, "linear")


def test_data_parallelism_is_the_better_buy():
    one, copies, parareal = rows()
    copies = dataclasses.replace(copies, step=0.97 * parareal.step)
    text = advise("net", [copies, parareal, one], **HOW)
    assert text.startswith("data parallelism is the better buy")
    assert f"against {parareal.speedup:.2f}× by parareal" in text
    even = dataclasses.replace(copies, step=1.04 * parareal.step)
    assert advise("net", [parareal, even, one], **HOW).startswith("data parallelism is the better buy")


def test_quality_is_unmeasured():
    one, copies, parareal = rows()
    parareal = dataclasses.replace(parareal, step=copies.step / 2)
    text = advise("net", [parareal, copies, one], **HOW)
    assert "whose quality on your data is unmeasured" in text
    assert "pararealize tradeoff net --n 4" in text
    choice = Choice(kind="linear", source="stem", why="the cheapest that learnt as well")
    assert known_quality(parareal, choice).endswith("'linear' was the cheapest that learnt as well")
    assert known_quality(parareal, dataclasses.replace(choice, kind="block")).endswith("; 'linear' is cheaper")
    other = dataclasses.replace(parareal, plan=None, name="layer-parallel multigrid")
    assert "has not been measured" in advise("net", [other, copies, one], **HOW)


def test_one_device():
    one, *_ = rows()
    assert advise("net", [one], devices=1, batch=8, memory=1e9).startswith("run it on one device")


def test_nothing_fits():
    large = [dataclasses.replace(row, fits=False, memory=1e11) for row in rows()]
    text = advise("net", large, **HOW)
    assert text.startswith("nothing fits into 1.00GB a device: the least is 100.00GB")
    assert "such as h200" in text
    huge = [dataclasses.replace(row, memory=1e15) for row in large]
    assert "More devices would do" in advise("net", huge, **HOW)
