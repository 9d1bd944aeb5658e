"""Formulas of pipelines against a simulation of every microbatch, written out once more."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.profiles import HostCosts, Link
from pararealize.strategies import pipeline
from pararealize.strategies.pipeline import Stages, pipelines, stage_ends
from tests.strategy_costs import costs_of

whole = st.integers(1, 9).map(float)


def simulated(stages: Stages, m: int, orders: list[list[tuple[str, int]]]) -> float:
    """The end of the last action where every stage does its own in order, each as early as what it needs is there."""
    p = len(stages.forward)
    end: dict[tuple[str, int, int], float] = {}
    place, free = [0] * p, [0.0] * p
    while any(at < len(order) for at, order in zip(place, orders, strict=True)):
        for s in range(p):
            if place[s] == len(orders[s]):
                continue
            way, k = orders[s][place[s]]
            if way == "f":
                before, message = ("f", s - 1, k), stages.messages[s - 1] if s else 0.0
                ready = 0.0 if s == 0 else end.get(before)
            else:
                before = ("f", s, k) if s == p - 1 else ("b", s + 1, k)
                message = 0.0 if s == p - 1 else stages.messages[s]
                ready = end.get(before)
            if ready is None:
                continue
            seconds = (stages.forward if way == "f" else stages.backward)[s]
            free[s] = max(free[s], ready + message * (s > 0 or way == "b")) + seconds
            end[way, s, k] = free[s]
            place[s] += 1
    return max(free)


def gpipe_orders(p: int, m: int) -> list[list[tuple[str, int]]]:
    return [[*(("f", k) for k in range(m)), *(("b", k) for k in range(m))] for _ in range(p)]


def one_by_one(p: int, m: int) -> list[list[tuple[str, int]]]:
    orders = []
    for s in range(p):
        warm = min(m, p - s)
        rest = [one for k in range(warm, m) for one in (("b", k - warm), ("f", k))]
        orders.append([*(("f", k) for k in range(warm)), *rest, *(("b", k) for k in range(m - warm, m))])
    return orders


@settings(max_examples=20)
@given(st.lists(st.tuples(whole, whole), min_size=2, max_size=4), st.integers(1, 6), st.integers(0, 3))
def test_gpipe_is_a_flow_shop(times, m, message):
    forward, backward = zip(*times, strict=True)
    stages = Stages(forward=forward, backward=backward, messages=(float(message),) * (len(times) - 1))
    assert stages.gpipe(m) == pytest.approx(simulated(stages, m, gpipe_orders(len(times), m)))


@settings(max_examples=20)
@given(whole, whole, st.integers(2, 5), st.integers(1, 8))
def test_equal_stages_one_forward_one_backward(forward, backward, p, m):
    stages = Stages(forward=(forward,) * p, backward=(backward,) * p, messages=(0.0,) * (p - 1))
    assert stages.one_forward_one_backward(m) == pytest.approx(simulated(stages, m, one_by_one(p, m)))
    assert stages.interleaved(m, p) == pytest.approx(stages.one_forward_one_backward(m))


@settings(max_examples=20)
@given(st.lists(st.tuples(whole, whole), min_size=2, max_size=4), st.integers(1, 6), st.integers(0, 2))
def test_unequal_stages_are_near_the_simulation(times, m, message):
    forward, backward = zip(*times, strict=True)
    stages = Stages(forward=forward, backward=backward, messages=(float(message),) * (len(times) - 1))
    exact = simulated(stages, m, one_by_one(len(times), m))
    assert 0.7 * exact <= stages.one_forward_one_backward(m) <= 1.3 * exact
    one = stages.one_forward_one_backward(1)
    assert one == pytest.approx(simulated(stages, 1, one_by_one(len(times), 1)))


@settings(max_examples=20)
@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=7), st.integers(1, 7))
def test_stages_are_the_best_balanced(work, p):
    p = min(p, len(work))
    ends = stage_ends(work, p)
    assert len(ends) == p
    assert ends[-1] == len(work)

    def longest(cut):
        return max(sum(work[a:b]) for a, b in itertools.pairwise((0, *cut, len(work))))

    best = min(longest(cut) for cut in itertools.combinations(range(1, len(work)), p - 1))
    assert longest(ends[:-1]) <= best * 1.0011


def test_of_a_network():
    slow, fast = (
        {row.name: row for row in pipelines(costs_of(Link(name="a", latency=0.0, bandwidth=b)), 4, 64)}
        for b in (1e6, 1e9)
    )
    assert set(fast) >= {"pipeline, GPipe", "pipeline, 1F1B", "pipeline, interleaved"}
    for name, row in fast.items():
        assert row.step <= slow[name].step
        assert row.devices <= 4
        assert row.exact
    assert list(pipelines(costs_of(), 1, 8)) == []


def test_copies_of_a_pipeline_have_what_copies_of_a_network_have():
    """Buckets in memory, and hooks on hosts: without them, copies of pipelines looked better than data parallelism."""
    link = Link(name="a", latency=0.0, bandwidth=1e30, host=HostCosts(copies=0.25, parameter=0.01))
    costs, plain = costs_of(link), costs_of()
    ends, _ = pipeline.stages_of(costs, 2, 4)
    spans = list(itertools.pairwise((0, *ends)))
    tensors = [20 / 8 * (b - a) for a, b in spans]  # ten layers have weight and bias; eight blocks
    passes = [4 * sum(costs.gradients[a:b]) / costs.profile.bandwidth for a, b in spans]
    for copies in (1, 2):
        rows, others = (
            {row.name: row.step for row in pipeline._of(one, 2, 1, copies, 4 * copies)} for one in (costs, plain)
        )
        longer = 0.25 + max(count * 0.01 for count in tensors) if copies > 1 else 0.0
        assert rows["pipeline, GPipe"] - others["pipeline, GPipe"] == pytest.approx(longer, rel=1e-3)
    stages = pipeline.stages_of(plain, 2, 4)[1]
    assert others["pipeline, GPipe"] - stages.gpipe(1) == pytest.approx(max(passes))
