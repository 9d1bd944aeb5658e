"""The network as blocks: cards, cuts, shapes, receptive fields, costs and guards, with and without a plan."""

from __future__ import annotations

from pararealize import make_plan
from pararealize.reports.elements import Cards, Section
from pararealize.reports.network import section_of_chain, section_of_plan
from tests.plans import windows_plan

from .pages import small_chain


def cards_of(section: Section) -> Cards:
    (cards,) = (figure for figure in section.figures if isinstance(figure, Cards))
    return cards


def test_segments_with_their_blocks_shapes_and_fields() -> None:
    plan = make_plan(small_chain(), 3)
    section = section_of_plan(plan, small_chain(), title="net", prefix="p")
    groups = cards_of(section).groups
    assert [group.title for group in groups] == ["Before", "3 segments at the same time", "After"]
    cards = groups[1].cards
    assert [card.cells for card in cards] == [segment.blocks for segment in plan.segments]
    assert [card.index for card in cards] == ["1", "2", "3"]
    assert len({(card.colour, card.pattern) for card in cards}) == 3
    second = dict(cards[1].facts)
    assert plan.segments[1].first_block in second["blocks"]
    assert second["shapes"] == f"{plan.segments[1].x} → {plan.segments[1].y}"
    assert "stride" in second["receptive field"]
    assert second["input from"].startswith("adapter C 2 of the network's input")
    assert second["corrected by"].startswith("F 1, ")
    captions = [table.caption for table in section.tables]
    assert captions[:4] == ["What it has and costs", "Segments", "Adapters C", "Coarse blocks F"]
    guards = next(table for table in section.tables if table.caption.startswith("Guards"))
    assert ("input.dim() == 4", "") in guards.rows
    assert section.facts[0] == (
        "predicted speed-up, a device a segment, messages free", f"{plan.virtual_speedup:.2f}×",
    )  # fmt: skip


def test_windows_have_colours_and_segments_patterns() -> None:
    section = section_of_plan(windows_plan([1, 1, 2, 3]), None, title="net", prefix="p")
    groups = cards_of(section).groups
    titles = [group.title for group in groups]
    assert titles[1:4] == [
        "In sequence, as in the original (windows 1–2)", "Window 3: 2 segments at the same time",
        "Window 4: 3 segments at the same time",
    ]  # fmt: skip
    assert [[card.colour for card in group.cards] for group in groups[2:4]] == [[2, 2], [3, 3, 3]]
    assert [card.pattern for card in groups[3].cards] == [0, 1, 2]


def test_a_network_that_is_not_cut() -> None:
    section = section_of_chain(small_chain(), title="net")
    groups = cards_of(section).groups
    assert len(groups) == len(small_chain().stages)
    assert sum(card.cells for group in groups for card in group.cards) == len(small_chain().blocks)
    refused = next(table for table in section.tables if table.caption.startswith("Cut points refused"))
    assert len(refused.rows) == len(small_chain().refused)
