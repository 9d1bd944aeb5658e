"""An expression in sizes (sympy's, of a recording's symbols) -> Python text, a Python function, or nodes of a graph.

Sizes of a tensor are such expressions: ``(s2 - 1)//2 + 1`` along one axis after a convolution of stride 2. To have the
same number in a graph, it is put together from sizes that are at hand there (``rebuild``): from the very same
expression; or solved for what they are affine in,

    at hand      t = (s2 - 1)//2 + 1            wanted      3 * ((s2 - 1)//2) + 5   ->   3 * (t - 1) + 5

sympy is imported within functions: it takes long, and importing the library is to be quick.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

__all__ = [
    "FUNCTIONS",
    "UnknownFunctionError",
    "compiled",
    "operations",
    "plain_number",
    "rebuild",
    "substituted",
    "symbols_of",
    "text_of",
    "write",
]

# names of sympy's and torch's classes -> the function, and how Python writes it
_INFIX: dict[str, tuple[Callable[..., Any], str]] = {
    "Add": (operator.add, "+"),
    "Mul": (operator.mul, "*"),
    "FloorDiv": (operator.floordiv, "//"),
    "CleanDiv": (operator.floordiv, "//"),
    "Mod": (operator.mod, "%"),
    "PythonMod": (operator.mod, "%"),
    "Pow": (operator.pow, "**"),
    "PowByNatural": (operator.pow, "**"),
    "FloatPow": (operator.pow, "**"),
    "IntTrueDiv": (operator.truediv, "/"),
    "FloatTrueDiv": (operator.truediv, "/"),
    "Equality": (operator.eq, "=="),
    "Unequality": (operator.ne, "!="),
    "StrictLessThan": (operator.lt, "<"),
    "LessThan": (operator.le, "<="),
    "StrictGreaterThan": (operator.gt, ">"),
    "GreaterThan": (operator.ge, ">="),
    "And": (operator.and_, "and"),
    "Or": (operator.or_, "or"),
}
_PREFIX: dict[str, tuple[Callable[..., Any], str]] = {
    "Max": (max, "max"),
    "Min": (min, "min"),
    "Abs": (abs, "abs"),
    "ToFloat": (float, "float"),
    "TruncToInt": (int, "int"),
    "FloorToInt": (math.floor, "floor"),
    "floor": (math.floor, "floor"),
    "CeilToInt": (math.ceil, "ceil"),
    "ceiling": (math.ceil, "ceil"),
    "RoundToInt": (round, "round"),
    "OpaqueUnaryFn_sqrt": (math.sqrt, "sqrt"),
    "OpaqueUnaryFn_log2": (math.log2, "log2"),
    "Not": (operator.not_, "not"),
}
FUNCTIONS = {text: function for function, text in _PREFIX.values() if text != "not"}


class UnknownFunctionError(Exception):
    """An expression has a function that no graph of ours holds."""


def symbols_of(expression: Any) -> tuple[Any, ...]:
    """Symbols of an expression, sorted by name."""
    return () if expression is None or isinstance(expression, int | float) else _symbols(expression)


@lru_cache(maxsize=65536)
def operations(expression: Any) -> int:
    """How many operations an expression takes, about."""
    return sum(1 + operations(argument) for argument in getattr(expression, "args", ()))


def substituted(expression: Any, values: Mapping[Any, int]) -> Any:
    """An expression with numbers in place of symbols; a plain number where no symbol is left."""
    if values and not set(values).isdisjoint(symbols_of(expression)):
        expression = expression.xreplace(dict(values))
    return expression if symbols_of(expression) else plain_number(expression)


@lru_cache(maxsize=65536)
def _symbols(expression: Any) -> tuple[Any, ...]:
    return tuple(sorted(expression.free_symbols, key=str))


def text_of(expression: Any, names: Mapping[Any, str]) -> str:
    """An expression as Python writes it, with names, or any other text, for its symbols.

    Raises:
        UnknownFunctionError: it has a function that is not known here.
    """
    return ast.unparse(ast.parse(_text(expression, names), mode="eval"))


def _text(expression: Any, names: Mapping[Any, str]) -> str:
    if expression in names:
        return names[expression]
    if not getattr(expression, "args", ()):
        return str(plain_number(expression))
    kind = type(expression).__name__
    operands = [_text(argument, names) for argument in _arguments(expression)]
    if kind in _INFIX:
        return "(" + f" {_INFIX[kind][1]} ".join(operands).replace("+ -", "- ") + ")"
    if kind in _PREFIX:
        return f"({_PREFIX[kind][1]}({', '.join(operands)}))"
    raise UnknownFunctionError(f"{kind} in {expression}")


@lru_cache(maxsize=65536)
def compiled(expression: Any, symbols: tuple[Any, ...]) -> Callable[..., Any]:
    """A function of the symbols' values, that many times as fast as a substitution."""
    names = {symbol: f"s{i}" for i, symbol in enumerate(symbols)}
    source = f"lambda {', '.join(names.values())}: {_text(expression, names)}"
    function: Callable[..., Any] = eval(source, dict(FUNCTIONS))  # noqa: S307 - written above
    return function


def write(expression: Any, nodes: Mapping[Any, Any], call: Callable[[Callable[..., Any], tuple[Any, ...]], Any]) -> Any:
    """Write the calls of an expression.

    Args:
        expression: what is to be computed.
        nodes: what stands for its symbols.
        call: writes a call of a function and gives what stands for its result.

    Raises:
        UnknownFunctionError: it has a function that is not known here.
    """
    if expression in nodes:
        return nodes[expression]
    if not getattr(expression, "args", ()):
        return plain_number(expression)
    kind = type(expression).__name__
    known = _INFIX.get(kind) or _PREFIX.get(kind)
    if known is None:
        raise UnknownFunctionError(f"{kind} in {expression}")
    operands = [write(argument, nodes, call) for argument in _arguments(expression)]
    if kind in _PREFIX and kind not in ("Max", "Min"):
        return call(known[0], tuple(operands))
    result = operands[0]
    for operand in operands[1:]:
        negative = kind == "Add" and type(operand) is int and operand < 0
        result = call(operator.sub, (result, -operand)) if negative else call(known[0], (result, operand))
    return result


def _arguments(expression: Any) -> list[Any]:
    """Operands in the order in which one would write them: a sum's numbers last, a product's first."""
    arguments = list(expression.args)
    if type(expression).__name__ in ("Add", "Mul"):
        arguments.sort(key=lambda a: (bool(a.is_number) == (type(expression).__name__ == "Add"), str(a)))
    return arguments


def plain_number(expression: Any) -> Any:
    """A number of Python's, where sympy has a number of its own."""
    if expression is None or isinstance(expression, bool | int | float):
        return expression
    if getattr(expression, "is_Boolean", False):
        return bool(expression)
    if expression.is_Integer:
        return int(expression)
    if expression.is_Float:
        return float(expression)
    raise UnknownFunctionError(f"{type(expression).__name__} {expression}")


# From sizes at hand -------------------------------------------------------------------------------------------------


def rebuild(expression: Any, at_hand: Sequence[Any]) -> tuple[Any, dict[Any, int]] | None:
    """An expression in new symbols for sizes at hand, and which of them each stands for; ``None`` where it is none.

    Args:
        expression: what is wanted.
        at_hand: expressions of the sizes at hand, the ones to prefer first.
    """
    import sympy  # type: ignore[import-untyped]

    expression = sympy.sympify(expression)
    if not expression.free_symbols:
        return expression, {}
    for i, size in enumerate(at_hand):
        if size == expression:
            return _symbol(i), {_symbol(i): i}
    solutions = _solutions(tuple(at_hand))
    terms = [_substituted(term, solutions) for term in sympy.Add.make_args(sympy.expand(expression))]
    result = sympy.Add(*terms)
    numbers = {_symbol(i): i for i in range(len(at_hand))}
    if not result.free_symbols <= numbers.keys():
        return None
    return result, {symbol: numbers[symbol] for symbol in result.free_symbols}


@lru_cache(maxsize=4096)
def _solutions(at_hand: tuple[Any, ...]) -> dict[Any, Any]:
    """What the sizes at hand are affine in, solved for: from a symbol, or another term, to what it equals."""
    import sympy
    from torch.utils._sympy.functions import FloorDiv

    solutions: dict[Any, Any] = {}
    for i, size in enumerate(at_hand):
        size = sympy.sympify(size)
        terms = [term for term in sympy.Add.make_args(size) if not term.is_number]
        if len(terms) != 1:
            continue
        factor, term = terms[0].as_coeff_Mul()
        offset = _symbol(i) - (size - terms[0])
        if factor.is_Integer:
            solutions.setdefault(term, offset if factor == 1 else FloorDiv(offset, factor))
    return solutions


def _substituted(term: Any, solutions: Mapping[Any, Any]) -> Any:
    factor, rest = term.as_coeff_Mul()
    return factor * (solutions[rest] if rest in solutions else rest.xreplace(solutions))


def _symbol(i: int) -> Any:
    import sympy

    return sympy.Symbol(f"t{i}", integer=True, positive=True)
