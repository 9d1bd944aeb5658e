"""Inputs of a recording -> tensors whose sizes are symbols, and what was decided on those sizes while it ran.

torch's own ``ShapeEnv`` computes with symbolic sizes; of its guards nothing is used: every decision comes to
:meth:`Sizes.decide`, which answers with the example's size and writes it down. There are two sorts:

    the model's Python decides (``if x.shape[0] > 4``, ``range(n)``)   a condition under which the recording holds
    a call that is one node decides (is it contiguous? do sizes fit?)  the graph calls it anew, and so it decides anew

Of the second sort only those matter that decide the sizes of what the call gives; see ``size_checks.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import linecache
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from .expressions import compiled, symbols_of

__all__ = [
    "Decision",
    "SizeArgument",
    "Sizes",
    "expression_of",
    "has_symbols",
    "is_symbolic",
    "layout_of",
    "line_of_model",
    "sizes_in",
]

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_TORCH, _HERE = f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[1]}/"
_MODELS = f"{_HERE}models.py"


class Decision(NamedTuple):
    """What was decided on sizes.

    Attributes:
        expression: what was asked for: a condition, or a number.
        answer: what it is at the example's sizes.
        line: the line of the model that asked for it.
    """

    expression: Any
    answer: Any
    line: str = ""

    @property
    def condition(self) -> Any:
        """What holds wherever the answer is the same."""
        import sympy  # type: ignore[import-untyped]

        if self.answer in (True, sympy.true):
            return self.expression
        if self.answer in (False, sympy.false):
            return sympy.Not(self.expression)
        return sympy.Eq(self.expression, self.answer)

    @property
    def is_value(self) -> bool:
        """Whether a number was asked for, as ``int(x.shape[0])`` does, and not whether something is so."""
        return not getattr(self.expression, "is_Boolean", False) and not getattr(
            self.expression, "is_Relational", False
        )


class Sizes:
    """The symbols of one recording.

    Attributes:
        hints: the example's size for every symbol.
        inputs: the input and the axis that a symbol is the size of.
        rows: those symbols that are the size of a batch.
        decisions: what the model's Python decided, by expression.
        inner: what the call that is under way decided; ``None`` while the model's Python runs.
        zero: whether the model asked for a size of 0, which no symbol stands for.
    """

    def __init__(self) -> None:
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        self.env = ShapeEnv(
            allow_scalar_outputs=False,
            allow_dynamic_output_shape_ops=False,
            duck_shape=False,
            specialize_zero_one=False,
        )
        self.env.evaluate_expr = self.decide  # type: ignore[method-assign, assignment]
        self.hints: dict[Any, int] = {}
        self.inputs: dict[Any, tuple[str, int]] = {}
        self.rows: set[Any] = set()
        self.decisions: dict[Any, Decision] = {}
        self.inner: dict[Any, Any] | None = {}
        self.zero = False

    @property
    def decides_on_batch(self) -> bool:
        """Whether the model's Python asked for anything that depends on the batch size."""
        return any(self.rows.intersection(symbols_of(expression)) for expression in self.decisions)

    def symbol(self, name: str, axis: int, size: int, *, batch: bool) -> Any:
        """The size of an input along an axis, and whether it is that of the batch."""
        from torch._dynamo.source import ConstantSource
        from torch.fx.experimental.symbolic_shapes import DimDynamic

        for symbol, place in self.inputs.items():  # of an earlier pass of the same recording
            if place == (name, axis):
                return self.size(symbol)
        source = ConstantSource(f"{name}.size({axis})")
        symbol = self.env.create_symbol(
            size, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None, do_not_specialize_zero_one=True
        )
        self.hints[symbol], self.inputs[symbol] = size, (name, axis)
        self.rows |= {symbol} if batch else set()
        return self.size(symbol)

    def size(self, expression: Any) -> Any:
        """A size that Python computes with, for an expression in the symbols; a plain one where it has none."""
        if not symbols_of(expression):
            return int(expression)
        return torch.SymInt(_size_node()(expression, self.env, int, int(self.value(expression, self.hints))))

    def decide(self, expression: Any, hint: Any = None, *_args: Any, **_options: Any) -> Any:
        """Answer what is asked of sizes by the example's, and write it down; in the place of ``evaluate_expr``."""
        import sympy

        if not getattr(expression, "free_symbols", None):
            self.zero = self.zero or (self.inner is None and expression in (sympy.true, sympy.false))
            return expression
        answer = self.value(expression, self.hints) if hint is None else hint
        if self.inner is not None:
            self.inner[expression] = answer
        elif expression not in self.decisions:
            self.decisions[expression] = Decision(expression, answer, line_of_model())
        return sympy.sympify(answer)

    def value(self, expression: Any, sizes: Mapping[Any, int]) -> Any:
        """What an expression is at given sizes."""
        symbols = symbols_of(expression)
        return compiled(expression, symbols)(*map(sizes.__getitem__, symbols))

    def at(self, value: Any, sizes: Mapping[Any, int], empty: Any) -> Any:
        """A value with plain sizes in place of symbols; a tensor that has some is made anew by ``empty``."""
        if isinstance(value, torch.Tensor):
            shape, stride, dtype, device = layout_of(value)
            if not any(map(symbols_of, (*shape, *stride))):
                return value
            plain = [tuple(int(self.value(size, sizes)) for size in axes) for axes in (shape, stride)]
            return empty(*plain, dtype, device)
        if isinstance(value, _SYMBOLIC):
            return self.value(expression_of(value), sizes)
        if isinstance(value, slice):
            return slice(*(self.at(item, sizes, empty) for item in (value.start, value.stop, value.step)))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.at(item, sizes, empty) for item in value))
        if isinstance(value, tuple | list):
            items = [self.at(item, sizes, empty) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            named = {key: self.at(item, sizes, empty) for key, item in value.items()}
            return type(value)(**named) if hasattr(value, "__dataclass_fields__") else named
        return value


@functools.cache
def _size_node() -> Any:
    """A size as torch computes with it, known to be no number: torch asks at every tensor that is made."""
    from torch.fx.experimental.sym_node import SymNode

    class SizeNode(SymNode):
        def is_int(self) -> bool:
            return True

        def maybe_as_int(self) -> None:
            return None

    return SizeNode


@dataclasses.dataclass(frozen=True, slots=True)
class SizeArgument:
    """A size among the arguments of a recorded call, until a node stands for it."""

    expression: Any


def is_symbolic(value: Any) -> bool:
    """Whether a Python number stands for a size that is not fixed."""
    return isinstance(value, _SYMBOLIC)


def expression_of(size: Any) -> Any:
    """The expression that a size is; of a plain one the number."""
    if isinstance(size, _SYMBOLIC):
        return size.node.expr
    return size.expression if isinstance(size, SizeArgument) else size


def layout_of(tensor: torch.Tensor) -> tuple[tuple[Any, ...], tuple[Any, ...], torch.dtype, torch.device]:
    """Shape, strides, element type and device, which can be compared and hashed whatever the sizes are."""
    shape, stride = tuple(map(expression_of, tensor.size())), ()
    if tensor.layout == torch.strided:
        stride = tuple(map(expression_of, tensor.stride()))
    return shape, stride, tensor.dtype, tensor.device


def has_symbols(value: Any) -> bool:
    """Whether any size of tensors and numbers within nested containers is not fixed."""
    return any(symbols_of(size) for size in sizes_in(value))


def sizes_in(value: Any) -> Iterator[Any]:
    """Every size, as an expression, of tensors and numbers within nested containers."""
    if isinstance(value, torch.Tensor):
        yield from map(expression_of, value.size())
        return
    if isinstance(value, _SYMBOLIC):
        yield value.node.expr
        return
    if isinstance(value, slice):
        value = value.start, value.stop, value.step
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from sizes_in(item)


def line_of_model() -> str:
    """The innermost line under way that is neither torch's nor the recorder's: ``model.py:31: if x.shape[0] > 4:``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_name == "capture" and frame.f_code.co_filename.startswith(_HERE)):
        file = frame.f_code.co_filename
        library = file.startswith((_TORCH, _HERE, "<")) and file != _MODELS
        if not library and not file.endswith(("/contextlib.py", "/functools.py")):
            text = linecache.getline(file, frame.f_lineno).strip()
            return f"{Path(file).name}:{frame.f_lineno}" + (f": {text}" if text else "")
        frame = frame.f_back
    return ""
