"""Rows of a plan: what they refuse, and their cost."""

import math

import pytest

from pararealize.analysis.space import Space
from pararealize.coarse.spec import AdapterPlan, CoarsePlan, RowCost
from pararealize.errors import PlanError

IMAGE, SPACE = Space(shape=(3, 8, 8), channel=0), Space(shape=(4, 4, 4), channel=0)
NUMBERS = {"cost_forward": 1.0, "cost_backward": 2.5, "parameters": 12, "flops_forward": 3, "flops_backward": 6}
ADAPTER = {"j": 2, "source": "input", "x": IMAGE, "y": SPACE, "recipe": "conv 1×1 3→4", **NUMBERS}
COARSE = {"j": 1, "kind": "linear", "units": 0, "kernel": 0, "x": SPACE, "y": SPACE, "note": "", **NUMBERS}


def test_the_cost_of_a_row_is_forward_and_backward():
    rows = RowCost(cost_forward=1.0, cost_backward=2.5), AdapterPlan(**ADAPTER), CoarsePlan(**COARSE)
    assert [row.cost for row in rows] == [3.5] * 3


@pytest.mark.parametrize(
    "wrong", [{"cost_forward": math.nan}, {"cost_backward": math.inf}, {"colour": "red"}, {"j": "x"}]
)
@pytest.mark.parametrize("row, values", [(AdapterPlan, ADAPTER), (CoarsePlan, COARSE)])
def test_a_row_of_a_file_that_is_no_row_is_refused(row, values, wrong):
    with pytest.raises(PlanError):
        row(**{**values, **wrong})


def test_adapters_read_the_input_or_the_stem():
    with pytest.raises(PlanError, match="input"):
        AdapterPlan(**{**ADAPTER, "source": "head"})
