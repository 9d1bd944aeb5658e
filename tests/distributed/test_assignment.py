"""Which segments each rank takes: the best assignment by brute force."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pararealize import Plan
from pararealize.distributed.assignment import assign
from pararealize.errors import DistributedError
from tests.drawn_plans import make_plan


def with_costs(fine: list[float], coarse: list[float]) -> Plan:
    """A plan whose segments and coarse blocks cost this, and its adapters nothing."""
    plan = json.loads(make_plan(len(fine)).to_json())
    for row, cost in zip(plan["segments"], fine, strict=True):
        row["cost_forward"], row["cost_backward"] = cost, 0.0
    for row, cost in zip(plan["coarse_blocks"], coarse, strict=True):
        row["cost_forward"], row["cost_backward"] = cost, 0.0
    for row in plan["adapters"]:
        row["cost_forward"] = row["cost_backward"] = 0.0
    return Plan.from_json(json.dumps(plan))


def critical(runs, fine, coarse):
    time = 0.0
    for first, last in runs:
        time = max(sum(fine[first - 1 : last]), time) + sum(coarse[max(first - 2, 0) : last - 1])
    return time


@given(st.data())
def test_no_assignment_is_better(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    ranks = data.draw(st.integers(1, n))
    costs = st.integers(0, 20).map(float)
    fine = data.draw(st.lists(costs, min_size=n, max_size=n))
    coarse = data.draw(st.lists(costs, min_size=n - 1, max_size=n - 1))
    runs = assign(with_costs(fine, coarse), ranks)
    assert [j for first, last in runs for j in range(first, last + 1)] == list(range(1, n + 1))
    others = []
    for starts in itertools.combinations(range(2, n + 1), ranks - 1):
        bounds = [1, *starts, n + 1]
        others.append([(a, b - 1) for a, b in itertools.pairwise(bounds)])
    assert critical(runs, fine, coarse) == min(critical(other, fine, coarse) for other in others)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DistributedError, match=r"4 ranks for n = 3 segments.*convert with n = 4"):
        assign(make_plan(3), 4)
    for wrong in ([1, 1], [0, 3], [1, 1, 1]):
        with pytest.raises(DistributedError, match="pass how many of the 3 segments each of the 2 ranks"):
            assign(make_plan(3), 2, wrong)
