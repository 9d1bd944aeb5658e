"""Windows in whose midst the space changes: which are tried, what they cost and err, and when."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pararealize import PararealModule, capture, find_blocks, pararealize, tradeoff
from pararealize.errors import CoarseError, PlanError
from pararealize.plan.spec import SegmentPlan
from pararealize.tradeoffs.space_changes import covers_half, measure_windows_across, windows_across

from .chains import Residual

DATA = [torch.randn(40, 6, generator=torch.Generator().manual_seed(i)) for i in range(5)]


def narrowing(widths: tuple[int, ...]) -> nn.Module:
    """A block for each width; where it changes, a linear layer."""
    torch.manual_seed(0)
    pairs = zip((6, *widths), widths, strict=False)
    return nn.Sequential(*(Residual(b, 0.2) if a == b else nn.Linear(a, b) for a, b in pairs)).eval()


def blocks_of(model: nn.Module) -> tuple[SegmentPlan, ...]:
    blocks = len(find_blocks(capture(model, DATA[0])).blocks)
    return pararealize(model, 1, windows=blocks, example_inputs=DATA[0]).plan.segments


def test_which_windows_and_where_they_matter() -> None:
    rows = blocks_of(narrowing((6, 6, 6, 5, 5, 5)))
    assert windows_across(rows, 2, 9) == [(2, 4), (1, 5)]
    assert windows_across(rows, 2, 1) == [(2, 4)]
    assert windows_across(rows, 2, 0) == []
    assert covers_half(rows)
    changing = blocks_of(narrowing((6, 5, 5, 4, 4, 3)))
    assert not covers_half(changing)
    assert all(b <= len(changing) for _, b in windows_across(changing, 3, 9))


def test_they_are_plans_of_a_network_that_has_little_else() -> None:
    model = narrowing((6, 5, 5, 4, 4, 3))
    said: list[str] = []
    front = tradeoff(model, DATA, n=2, points=2, report=said.append)
    assert sum("across a change of space" in line for line in said) > 2
    parallel = [window for row in front.rows for window in row.plan.windows if not window.sequential]
    assert parallel
    assert any(len({segment.y for segment in window.segments}) > 1 for window in parallel)
    assert all(row.error < 1 for row in front.rows)
    said.clear()
    tradeoff(model, DATA, n=2, points=1, across=0, report=said.append)
    assert not any("across a change of space" in line for line in said)
    with pytest.raises(PlanError, match="across is -1; pass 0 or more, or None"):
        tradeoff(model, DATA, across=-1)


def test_those_that_nothing_crosses_are_passed_over() -> None:
    def convert(n: int, windows: Sequence[tuple[int, int]]) -> PararealModule:
        raise CoarseError("nothing maps images to tokens")

    said: list[str] = []
    original: Any = SimpleNamespace(rows=blocks_of(narrowing((6, 5, 5, 4, 4, 3))))
    assert measure_windows_across(original, convert, [], [], [], 2, most=3, seed=0, say=said.append) == []
    assert sum("is passed over: nothing maps images to tokens" in line for line in said) == 3
