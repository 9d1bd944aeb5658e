"""Rows of a plan for a given cut: they partition the network, and sum to what its parts cost."""

import pytest
import torch

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.cost import count_costs
from pararealize.analysis.fields.field import receptive_fields
from pararealize.coarse.adapter import adapter_cost, describe_adapter
from pararealize.coarse.coarse_block import coarse_cost
from pararealize.models import resnet20
from pararealize.planning.prices import Prices
from pararealize.planning.rows import PlanRequest, plan_of
from pararealize.tracing.front_end import capture


@pytest.fixture(scope="module")
def chain():
    return find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))


def plan(chain, starts, *, coarse="linear", source="input", notes=()):
    prices = Prices(chain, receptive_fields(chain), count_costs(chain), len(starts), source)
    request = PlanRequest(coarse="asked", cuts="cost", devices=("cpu",) * len(starts), notes=notes)
    return plan_of(prices, coarse, [starts], request)


def test_segments_are_the_blocks_in_order(chain):
    rows = plan(chain, (0, 2, 6)).segments
    assert [(row.j, row.first, row.last, row.blocks) for row in rows] == [(1, 0, 1, 2), (2, 2, 5, 4), (3, 6, 8, 3)]
    assert [row.first_block for row in rows] == [chain.blocks[i].name for i in (0, 2, 6)]
    assert sum(row.cost for row in rows) == count_costs(chain).step(0, 8)
    assert sum(row.parameters for row in rows) == sum(block.parameters for block in chain.blocks)


@pytest.mark.parametrize("source", ["input", "stem"])
def test_adapters_lead_from_the_source_to_every_later_segment(chain, source):
    rows = plan(chain, (0, 3, 6), source=source).adapters
    origin = chain.source if source == "input" else chain.blocks[0].x
    assert [row.j for row in rows] == [2, 3]
    for row, start in zip(rows, (3, 6), strict=True):
        assert (row.source, row.x, row.y) == (source, origin, chain.blocks[start].x)
        assert row.recipe == describe_adapter(origin, row.y, reads=source)
        parameters, cost = adapter_cost(origin, row.y, reads=source)
        assert (row.parameters, row.cost) == (parameters, cost.work)


def test_coarse_blocks_stand_for_the_segment_behind_them(chain):
    rows = plan(chain, (0, 3, 6), coarse="paper").coarse_blocks
    for row, (first, last) in zip(rows, ((3, 5), (6, 8)), strict=True):
        assert (row.x, row.y) == (chain.blocks[first].x, chain.blocks[last].y)
        parameters, cost = coarse_cost("paper", row.x, row.y, row.units)
        assert (row.parameters, row.flops_forward) == (parameters, cost.flops_forward)
        assert row.cost > cost.work, "with the correction around it"


def test_notes_of_the_request_come_first_and_a_plan_that_does_not_pay_says_so(chain):
    costly = plan(chain, (0, 3, 6), coarse="exact", notes=("because",))
    assert costly.notes[0] == "because"
    assert "does not pay" in costly.notes[-1]
    assert costly.coarse == "asked"
    whole = plan(chain, (0,), coarse="exact")
    assert whole.notes == whole.adapters == whole.coarse_blocks == ()


def test_a_callables_cost_is_said_to_be_unknown(chain):
    custom = plan(chain, (0, 3, 6), coarse=lambda segment, x, y: segment)
    assert any("of asked are not counted" in note for note in custom.notes)
    assert {row.parameters for row in custom.coarse_blocks} == {0}


def test_rows_of_windows_have_two_numbers_and_adapters_read_what_the_window_before_gives(chain):
    windows = [(0, 2), (3,), (4, 6, 8)]
    prices = Prices(chain, receptive_fields(chain), count_costs(chain), 3, "stem", True)
    made = plan_of(prices, "linear", windows, PlanRequest(coarse="linear", cuts="cost", devices=("a", "b", "c")))
    assert [row.index for row in made.segments] == [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (3, 3)]
    assert [(row.first, row.last) for row in made.segments] == [(0, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 8)]
    assert [row.device for row in made.segments] == ["a", "b", "a", "a", "b", "c"]
    assert [(row.name, row.source) for row in made.adapters] == [(name, "window") for name in ("C1_2", "C3_2", "C3_3")]
    assert [row.x for row in made.adapters] == [chain.blocks[0].x, chain.blocks[4].x, chain.blocks[4].x]
    assert made.adapters[0].recipe == "identity"
    assert [row.name for row in made.coarse_blocks] == ["F1_1", "F3_1", "F3_2"]
    assert made.notes == ()
    alone = plan_of(prices, "linear", [(i,) for i in range(9)], PlanRequest(coarse="", cuts="cost", devices=("a",)))
    assert (alone.n, alone.notes) == (1, ("n is 1, not 3: the longest window has 1 block",))
    short = plan_of(prices, "linear", [(0, 3, 6), (8,)], PlanRequest(coarse="", cuts="cost", devices=("a", "b", "c")))
    assert short.segments[-1].device == "c", "the network ends on the last device"
