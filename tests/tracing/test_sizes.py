"""Sizes of inputs are symbols: Python computes with them, and what it decides is written down with its line."""

from __future__ import annotations

import pytest
import torch

from pararealize.tracing.sizes import Sizes, expression_of, has_symbols, is_symbolic, layout_of, line_of_model, sizes_in


@pytest.fixture
def sizes() -> Sizes:
    sizes = Sizes()
    sizes.inner = None
    return sizes


def test_a_symbol_computes_and_answers_as_the_examples_size(sizes: Sizes) -> None:
    batch, length = sizes.symbol("x", 0, 2, batch=True), sizes.symbol("x", 1, 12, batch=False)
    assert is_symbolic(batch * length // 4 + 1)
    assert sizes.value(expression_of(batch * length), sizes.hints) == 24
    assert sizes.value(expression_of(batch * length), dict(zip(sizes.hints, (3, 5), strict=True))) == 15
    assert expression_of(sizes.symbol("x", 1, 12, batch=False)) == expression_of(length)  # the same once more
    assert list(sizes.inputs.values()) == [("x", 0), ("x", 1)]


def test_decisions_are_kept_with_their_lines(sizes: Sizes) -> None:
    batch = sizes.symbol("x", 0, 2, batch=True)
    assert not batch > 4
    assert batch != 1
    assert int(batch) == 2
    assert [str(decision.condition) for decision in sizes.decisions.values()] == [
        f"{expression_of(batch)} <= 4",
        f"Ne({expression_of(batch)}, 1)",
        f"Eq({expression_of(batch)}, 2)",
    ]
    assert [decision.is_value for decision in sizes.decisions.values()] == [False, False, True]
    assert "assert not batch > 4" in next(iter(sizes.decisions.values())).line
    assert sizes.decides_on_batch


def test_what_a_call_decides_is_kept_apart(sizes: Sizes) -> None:
    batch = sizes.symbol("x", 0, 2, batch=True)
    sizes.inner = {}
    assert batch < 4
    assert not sizes.decisions
    assert len(sizes.inner) == 1
    sizes.inner = None
    assert batch != 0
    assert sizes.zero  # a size of 0 stands for no symbol


def test_values_at_other_sizes(sizes: Sizes) -> None:
    batch = sizes.symbol("x", 0, 2, batch=True)
    tensor = torch.empty(2, 3)
    assert not has_symbols([tensor, 4])
    assert layout_of(tensor) == ((2, 3), (3, 1), torch.float32, torch.device("cpu"))
    assert list(sizes_in({"a": tensor, "b": slice(None, batch)})) == [2, 3, expression_of(batch)]
    other = sizes.at((batch * 2, [slice(batch)], {"a": tensor}), {expression_of(batch): 5}, torch.empty)
    assert other == (10, [slice(None, 5, None)], {"a": tensor})
    assert "line_of_model()" in line_of_model()
