"""The table that a plan prints: narrow, aligned, complete."""

from __future__ import annotations

import dataclasses

import pytest

from pararealize.plan.plan import plan_text
from tests.handmade import make_plan


@pytest.mark.parametrize(
    "plan", [make_plan(12, name="a.very.long.name.of.a.stage{stage}.in.a.network.{i}"), make_plan(3)]
)
def test_the_table_is_narrow_and_complete(plan):
    text = str(plan)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0] == f"PreActResNet: n = {plan.n}, coarse 'paper', cuts 'cost', adapters read the input"
    rows = [line.split()[0] for line in lines if line.strip()]
    order = ["g", "stem", *(str(s.j) for s in plan.segments), "head", "C", *(str(a.j) for a in plan.adapters), "F"]
    assert rows[1:] == [*order, *(str(f.j) for f in plan.coarse_blocks), "parameters:", "one", "speed-up:"]


def test_rows_hold_the_numbers_of_the_plan():
    plan = make_plan(3, uneven=True)
    text = plan_text(plan)
    rows = [line.split() for line in text.splitlines()]
    first = ["1", "stage1.0", "stage1.9", "10", "64×32×32", "64×32×32", "870.0k", "0.333", "0.667", "cuda:0"]
    for row in (
        ["stem", "432", "0.001", "0.002"],
        first,
        ["head", "3.1k", "0.000", "0.000"],
        ["3", "3×32×32", "128×16×16", "conv", "1×1", "768", "1.00"],
        ["1", "paper", "×", "1", "64×32×32", "128×16×16", "500.0k", "0.200", "0.400"],
    ):
        assert row in rows
    p = plan.parameters
    assert f"parameters: {p.original / 1e6:.2f}M original + 1.3k adapters + 1.00M coarse = {p.total / 1e6:.2f}M" in text
    assert f"{plan.serial:.4g} operations a sample in sequence, {plan.critical_path:.4g} on the longest path" in text
    assert f"speed-up:   {plan.virtual_speedup:.2f}×" in text


def test_columns_are_as_wide_as_their_widest_cell():
    lines = plan_text(make_plan(12)).splitlines()
    head = next(line for line in lines if line.startswith("g "))
    rows = [line for line in lines[lines.index(head) + 1 :][:14] if line.strip()]
    for column in ("first block", "last block", "input", "output", "device"):
        at = head.index(column)
        for row in rows[1:-1]:
            assert row[at - 2 : at] == "  "
            assert row[at] != " "
    for column in ("blocks", "params", "GFLOPs", "backward"):
        end = head.index(column) + len(column)
        assert all(row[end - 1] != " " and row[end : end + 2] == "  " for row in rows[1:-1])


def test_what_is_printed_only_where_it_says_something():
    one = plan_text(make_plan(1, notes=("first", "second")))
    assert "recipe" not in one
    assert "kind" not in one
    assert one.endswith("note: first\nnote: second")
    assert "note" not in plan_text(make_plan(2))
    seconds = plan_text(make_plan(2, unit="seconds", source="stem"))
    assert "seconds a batch of 2 in sequence" in seconds
    assert "adapters read the stem" in seconds
    stem = next(line for line in seconds.splitlines() if line.startswith("stem"))
    deeper = plan_text(dataclasses.replace(make_plan(2, unit="seconds", source="stem"), stem_blocks=7))
    assert [stem.split()[0], "7", *stem.split()[1:]] in [line.split() for line in deeper.splitlines()]
    plan = make_plan(2)
    assert "cuts 'by name'" in plan_text(dataclasses.replace(plan, cuts=("stage1.9",)))
    wide = dataclasses.replace(plan, coarse_blocks=(dataclasses.replace(plan.coarse_blocks[0], units=2, kernel=7),))
    assert "paper  × 2, 7 wide  64×32×32" in plan_text(wide)


def test_long_lines_are_cut_off_and_long_names_lose_their_middle():
    text = plan_text(make_plan(2, name="a" * 20 + ".{stage}.{i}" + "z" * 20, notes=("n" * 200,)))
    assert "aaaaaaaaaa…zzzzzzzzzzz" in text
    lines = text.splitlines()
    assert len(lines[-1]) == 120
    assert lines[-1].endswith("nn…")
    exact = plan_text(make_plan(2, name="b" * 22))
    assert "b" * 22 in exact
    assert "…" not in exact
