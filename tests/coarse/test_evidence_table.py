"""Which coarse kind "auto" is: the rule by hand, and what the plan says."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pararealize import capture, find_blocks, pararealize
from pararealize.coarse.evidence_table import (
    DEFAULT,
    Evidence,
    choose,
    choose_from,
    choose_front,
    evidence,
    front_from,
)
from pararealize.coarse.family import FAMILIES
from pararealize.coarse.kinds import KINDS
from pararealize.compiler import make_plan
from pararealize.errors import CoarseError, PlanError
from pararealize.models import resnet20
from pararealize.plan.plan import Plan


def row(kind, error, share, *, n=6, original=0.05, data="digits", family="attention", source="stem", stem=0.0):
    return Evidence(
        family=family, data=data, n=n, kind=kind, source=source, error=error, deviation=0.01, original=original,
        original_deviation=0.01, seeds=5, coarse_share=share, stem_share=stem,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the rule


def test_the_cheapest_that_did_as_well():
    rows = [row("linear", 0.06, 0.0), row("bottleneck", 0.05, 0.05), row("block", 0.01, 0.5)]
    choice = choose_from(rows, "attention", 6)
    assert (choice.kind, choice.source) == ("bottleneck", "stem")
    assert "digits: 5.0 ± 1.0% against 5.0 ± 1.0%, 5 seeds" in choice.why


def test_on_every_data_set():
    """What was tried on one of two data sets does not count beside what was tried on both."""
    rows = [row("linear", 0.04, 0.0), row("linear", 0.31, 0.0, data="glyphs", original=0.3), row("block", 0.04, 0.3)]
    rows += [row("paper", 0.04, 0.4), row("paper", 0.3, 0.4, data="glyphs", original=0.3)]
    assert choose_from(rows, "attention", 6).kind == "paper"
    assert choose_from(rows[:3], "attention", 6).kind == "linear"
    deeper = row("linear", 0.01, 0.0, stem=0.5)
    assert "sequential" not in choose_from([*rows[:3], deeper], "attention", 6).why
    deeper_too = row("linear", 0.29, 0.0, data="glyphs", original=0.3, stem=0.5)
    assert "with 50% of the blocks" in choose_from([*rows[:3], deeper, deeper_too], "attention", 6).why


def test_sources_are_told_apart():
    rows = [row("linear", 0.09, 0.0, source="input"), row("linear", 0.05, 0.0, source="stem")]
    assert choose_from(rows, "attention", 6).source == "stem"
    assert choose_from(rows[::-1], "attention", 6).source == "stem"


def test_where_none_did_as_well_the_nearest_is_taken_and_said():
    choice = choose_from([row("linear", 0.09, 0.0), row("block", 0.07, 0.5)], "attention", 6)
    assert choice.kind == "block"
    assert "which none reached" in choice.why


@pytest.mark.parametrize("n, at", [(2, 3), (3, 3), (4, 6), (6, 6), (7, 12), (12, 12), (50, 12)])
def test_evidence_of_as_many_segments_or_more(n, at):
    rows = [row("linear", 0.05, 0.0, n=m, original=0.05) for m in (12, 3, 6)]
    assert f"at n = {at} " in choose_from(rows, "attention", n).why


def test_a_deeper_stem_is_advised_and_counts_where_there_is_one():
    rows = [row("linear", 0.09, 0.0), row("bottleneck", 0.07, 0.05)]
    deeper = [row("linear", 0.06, 0.0, stem=0.25), row("bottleneck", 0.05, 0.05, stem=0.25)]
    deepest = [row("linear", 0.05, 0.0, stem=0.5)]
    without = choose_from(rows, "attention", 6)
    assert (without.kind, "sequential" in without.why) == ("bottleneck", False)
    advised = choose_from(rows + deeper + deepest, "attention", 6)
    assert advised.kind == "bottleneck"
    assert advised.why.endswith(
        '; with 25% of the blocks sequential in front (sequential=...), "bottleneck" reached it'
    )
    assert choose_from(rows + deeper, "attention", 6, stem_share=0.3).why.startswith("the cheapest that learnt")
    assert choose_from(rows + deeper + deepest, "attention", 6, stem_share=0.5).kind == "linear"
    assert "sequential" not in choose_from([*rows, row("linear", 0.06, 0.0, stem=0.5)], "attention", 6).why


def test_a_share_of_the_stem_that_the_table_rounds_up_is_the_networks_own():
    rows = [row("linear", 0.09, 0.0), row("bottleneck", 0.05, 0.05, stem=round(2 / 12, 5))]
    assert choose_from(rows, "attention", 6, stem_share=2 / 12).why.startswith("the cheapest that learnt")
    rows = [row("linear", 0.09, 0.0), row("bottleneck", 0.06, 0.05, stem=round(2 / 12, 5))]
    rows += [row("block", 0.05, 0.5, stem=round(2 / 12, 5))]
    assert "sequential" not in choose_from(rows, "attention", 6, stem_share=2 / 12).why


def test_a_network_with_blocks_in_its_stem_is_told_by_their_share(monkeypatch):
    told = []
    monkeypatch.setattr("pararealize.coarse.evidence_table.choose_from", lambda *_, stem_share: told.append(stem_share))
    for deeper in (0, 3):
        choose(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))), 3, sequential=deeper)
    assert told == [0, 3 / 9]


def test_the_smallest_share_of_first_blocks_that_learnt():
    rows = [row("linear", 0.09, 0.0), row("linear", 0.05, 0.1, stem=0.5), row("block", 0.04, 0.3, stem=0.25)]
    front = front_from(rows, "attention", 6, 12)
    assert front.blocks == 3
    assert front.why.startswith(
        "the smallest share that learnt as well as the original for attention, with block (n = 6"
    )
    assert front_from([*rows, row("paper", 0.05, 0.9)], "attention", 6, 12).blocks == 0


def test_where_no_share_learnt_the_nearest_stays():
    rows = [row("linear", 0.09, 0.0), row("linear", 0.06, 0.0, stem=0.25), row("linear", 0.07, 0.0, stem=0.5)]
    front = front_from(rows, "attention", 6, 8)
    assert front.blocks == 2
    assert "came nearest to the original, which none reached" in front.why


def test_a_share_that_was_tried_on_fewer_data_sets_does_not_count():
    rows = [row("linear", 0.04, 0.0, stem=0.25), row("linear", 0.05, 0.0, stem=0.5)]
    assert front_from(rows, "attention", 6, 8).blocks == 2
    rows.append(row("linear", 0.2, 0.0, stem=0.5, data="glyphs", original=0.3))
    assert front_from(rows, "attention", 6, 8).blocks == 4


@pytest.mark.parametrize("n, blocks", [(2, 0), (3, 0), (4, 4), (6, 4), (7, 8), (12, 8), (40, 8)])
def test_the_front_is_by_evidence_of_as_many_segments_or_more(n, blocks):
    rows = [row("linear", 0.05, 0.0, n=3), row("linear", 0.06, 0.0, n=6), row("linear", 0.09, 0.0, n=12)]
    rows += [row("linear", 0.05, 0.0, n=m, stem=0.25) for m in (6, 3)] + [row("linear", 0.07, 0.0, n=12, stem=0.25)]
    rows += [row("linear", 0.05, 0.0, n=6, stem=0.5)]  # the most segments that leave these blocks
    assert front_from(rows, "attention", n, 16).blocks == blocks


def test_no_evidence_leaves_nothing_in_front():
    for family, why in (("plain convolutions", "no network of plain convolutions was tried"), (None, "of no family")):
        front = front_from([row("linear", 0.01, 0.0, stem=0.5)], family, 6, 12)
        assert front.blocks == 0
        assert why in front.why


def test_no_evidence():
    for family in ("plain convolutions", None):
        choice = choose_from([row("linear", 0.01, 0.0)], family, 6)
        assert (choice.kind, choice.source) == (DEFAULT, None)
        assert "default" in choice.why


def test_the_table_is_of_known_families_and_kinds():
    for found in evidence():
        assert found.family in FAMILIES
        assert found.kind in KINDS
        assert found.source in ("stem", "input")
        assert found.seeds >= 3


class Vectors(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + functional.relu(self.linear(x))


# ---------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_says_what_was_chosen_and_why():
    chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
    plan, choice = make_plan(chain, 3, coarse="auto"), choose(chain, 3)
    assert plan.coarse == "auto"
    assert {block.kind for block in plan.coarse_blocks} == {choice.kind}
    assert plan.notes[0] == f'"auto" is "{choice.kind}": {choice.why}'
    assert plan.source == (choice.source or "input")
    assert make_plan(chain, 3, coarse="auto", source="input").source == "input"
    assert Plan.from_json(plan.to_json()) == plan
    named = make_plan(chain, 3, coarse=choice.kind, source=plan.source)
    assert plan.segments == named.segments


def test_the_plan_has_as_many_sequential_blocks_as_were_chosen_and_says_why():
    chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
    front = choose_front(chain, 3)
    assert front.blocks > 0
    plan = make_plan(chain, 3, coarse="linear", sequential="auto")
    assert plan.notes[0] == f'sequential, "auto", is {front.blocks} blocks in front: {front.why}'
    assert plan.windows == make_plan(chain, 3, coarse="linear", sequential=front.blocks).windows
    both = make_plan(chain, 3, coarse="auto", sequential="auto", windows="auto")
    assert both.windows[0].sequential
    assert both.windows[0].segments[0].blocks == front.blocks
    assert sum(note.startswith("sequential, ") for note in both.notes) == 1
    again = pararealize(resnet20(), plan=plan, sequential="auto", example_inputs=torch.randn(2, 3, 32, 32))
    assert again.plan == plan


def test_a_window_keeps_as_many_blocks_as_it_has_segments():
    chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
    for n, blocks in ((8, 1), (9, 0)):
        plan = make_plan(chain, n, coarse="linear", sequential="auto")
        assert sum(window.segments[0].blocks for window in plan.windows if window.sequential) == blocks
        assert (
            f"{blocks} block{'' if blocks == 1 else 's'} in front, not 2, as the windows asked for need the others"
            in plan.notes[0]
        )
    assert not make_plan(chain, 1, sequential="auto").notes
    with pytest.raises(PlanError, match="n = 'three' is out of range"):
        make_plan(chain, "three", sequential="auto")
    for asked, front in (
        ({"windows": 8}, 1),
        ({"windows": 9}, 0),
        ({"windows": ["stage1.1"]}, 1),
        ({"windows": ["stage2.0"]}, 2),
        ({"cuts": ["stage1.1", "stage2.0"]}, 0),
        ({"cuts": ["stage1.2", "stage2.0"]}, 1),
        ({"cuts": ["stage3.0", "stage3.1"]}, 2),
    ):
        plan = make_plan(chain, 3, coarse="linear", sequential="auto", **asked)
        note = next(note for note in plan.notes if "sequential" in note)
        assert note.startswith(f'sequential, "auto", is {front} block{"" if front == 1 else "s"} in front')
        assert plan.windows[0].segments[0].blocks >= front
    assert make_plan(chain, 9, coarse="linear", sequential="auto", windows="auto").windows[0].segments[0].blocks == 2


def test_without_evidence_the_network_is_built_with_the_default():
    net = pararealize(nn.Sequential(*(Vectors() for _ in range(4))), 2, example_inputs=torch.randn(2, 8), coarse="auto")
    assert [block.kind for block in net.plan.coarse_blocks] == [DEFAULT]
    assert net(torch.randn(3, 8)).shape == (3, 8)


def test_a_near_name():
    with pytest.raises(CoarseError, match="did you mean 'auto'"):
        pararealize(nn.Sequential(*(Vectors() for _ in range(4))), 2, example_inputs=torch.randn(2, 8), coarse="autos")
