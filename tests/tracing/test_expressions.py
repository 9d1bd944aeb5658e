"""Expressions in sizes print as Python, are written as calls, and are put together from sizes at hand."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Mod

from pararealize.tracing.expressions import (
    UnknownFunctionError,
    compiled,
    operations,
    rebuild,
    substituted,
    symbols_of,
    text_of,
    write,
)

B, H, W = sympy.symbols("B H W", integer=True, positive=True)
NAMES = {B: "x.size(0)", H: "x.size(2)", W: "x.size(3)"}


@pytest.mark.parametrize(
    "expression, text",
    [
        (sympy.Le(B, 4), "x.size(0) <= 4"),
        (sympy.Eq(Mod(H, 14), 0), "x.size(2) % 14 == 0"),
        (FloorDiv(H - 1, 2) + 1, "(x.size(2) - 1) // 2 + 1"),
        (3 * H * W, "3 * x.size(2) * x.size(3)"),
        (sympy.Not(sympy.Eq(B, 1)), "x.size(0) != 1"),
    ],
)
def test_they_print_as_python(expression: Any, text: str) -> None:
    assert text_of(expression, NAMES) == text


def test_a_function_that_is_not_known_is_refused() -> None:
    for use in (lambda e: text_of(e, NAMES), lambda e: write(e, {B: 3}, lambda f, a: f(*a))):
        with pytest.raises(UnknownFunctionError, match="sin"):
            use(sympy.sin(B) + 1)


def test_they_are_written_as_calls() -> None:
    calls: list[Any] = []

    def call(function: Any, arguments: Any) -> Any:
        calls.append(function)
        return function(*arguments)

    assert write(FloorDiv(H - 1, 2) + 1, {H: 9}, call) == 5
    assert calls == [operator.sub, operator.floordiv, operator.add]


sizes = st.sampled_from([B, H, W, FloorDiv(H - 1, 2) + 1, FloorDiv(W, 2), 2 * B, H + 3, B * H])
expressions = st.recursive(
    st.one_of(sizes, st.integers(1, 5).map(sympy.Integer)),
    lambda inner: st.builds(lambda f, a, b: f(a, b), st.sampled_from([sympy.Add, sympy.Mul]), inner, inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(expressions, st.lists(sizes, min_size=1, max_size=4), st.tuples(*[st.integers(2, 40)] * 3))
def test_what_is_put_together_is_the_same_number(expression: Any, at_hand: list[Any], values: tuple[int, ...]) -> None:
    """At any sizes, by sympy's own substitution."""
    numbers = dict(zip((B, H, W), values, strict=True))
    wanted = sympy.sympify(expression).xreplace(numbers)
    symbols = symbols_of(expression)
    assert compiled(sympy.sympify(expression), symbols)(*(numbers[s] for s in symbols)) == wanted
    solution = rebuild(expression, at_hand)
    if solution is not None:
        result, places = solution
        nodes = {symbol: int(at_hand[i].xreplace(numbers)) for symbol, i in places.items()}
        assert write(result, nodes, lambda f, a: f(*a)) == wanted


def test_sizes_at_hand_are_solved_for_what_they_are_affine_in() -> None:
    floor = FloorDiv(H - 1, 2)
    assert rebuild(3 * floor + 5, [floor + 1]) is not None
    assert rebuild(H * W, [2 * H, W + 1]) is not None
    assert rebuild(H, [floor + 1]) is None  # 7 and 8 give the same
    assert rebuild(sympy.Integer(7), []) == (7, {})


def test_a_symbol_of_one_size_becomes_that_number() -> None:
    assert substituted(H * W + 1, {H: 2, W: 3}) == 7
    assert type(substituted(H * 2, {H: 2})) is int
    assert substituted(B, {H: 2}) is B
    assert operations(B) < operations(B * H + 1)
