"""Values -> sections: order, plans with their chains, timelines to one scale, restacking, and refusals."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from pararealize import make_plan
from pararealize.analysis.residual import NotResidual
from pararealize.errors import OutputError
from pararealize.reports.elements import Section
from pararealize.reports.sections import sections_of
from pararealize.restacking.module import BlockGroup, Restacking

from .pages import small_chain, some_history, some_timeline


def test_a_chain_goes_into_the_section_of_its_plan() -> None:
    chain = small_chain()
    plan = make_plan(chain, 2)
    (section,) = sections_of([plan, chain], title="")
    assert section.title == "The network: Sequential"
    assert any(table.caption.startswith("Guards") for table in section.tables)
    renamed = dataclasses.replace(plan.segments[0], first_block="other")
    other = dataclasses.replace(plan, segments=(renamed, *plan.segments[1:]))
    assert len(sections_of([other, chain], title="")) == 2


def test_timelines_share_a_section_and_a_scale() -> None:
    predicted = some_timeline()
    slower = tuple(dataclasses.replace(a, start=2 * a.start, end=2 * a.end) for a in predicted.actions)
    measured = dataclasses.replace(predicted, origin="recorded", actions=slower)
    (section,) = sections_of([predicted, measured], title="")
    first, second = section.figures
    assert [figure.title for figure in section.figures] == [
        "One step on 3 devices, predicted",
        "One step on 3 devices, measured",
    ]
    ends = [max(bar.x + bar.width for bar in figure.bars) for figure in (first, second)]  # type: ignore[union-attr]
    assert ends == pytest.approx([50, 100], abs=0.01)
    assert ("speed-up, measured", f"{predicted.speedup:.2f}×") in section.facts


def test_restacking() -> None:
    groups = tuple(BlockGroup(blocks=(f"a.{i}", f"b.{i}"), post=False) for i in range(3))
    left = (NotResidual(name="c", reason="other sizes"),)
    restacking = Restacking(
        model="Net", scheme="midpoint", stages=2, order=2, h=1.0, adaptive=None, per="residual", groups=groups,
        left=left,
    )  # fmt: skip
    (section,) = sections_of([restacking], title="")
    steps, left = section.tables
    assert len(steps.rows) == 3
    assert left.caption == "Left as they were"
    assert ("order", "2") in section.facts


def test_what_no_page_shows_is_refused() -> None:
    assert [section.title for section in sections_of([Section(title="Mine"), some_history()], title="")] == [
        "Mine",
        "Training",
    ]
    with pytest.raises(OutputError, match=r"cannot show a Linear; pass values of .*\.plan"):
        sections_of([nn.Linear(1, 1)], title="")
