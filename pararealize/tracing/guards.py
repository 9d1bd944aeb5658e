"""Conditions on a network's inputs under which its recording holds: as text, as data, and as one check in a graph.

A guard is an expression of Python over the inputs by name, and the line of the model that asked for it:

    x.dim() == 4
    x.size(1) == 3           # model.py:12: x = self.stem(x)
    x.size(0) <= 4           # model.py:31: if x.shape[0] > 4:

The text is all there is to a guard, so that it can be printed, copied and written to JSON; it is compiled once.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pararealize.errors import GuardError

from .expressions import FUNCTIONS

__all__ = ["Guard", "Guards", "Input", "check_guards", "guards_hold", "write_guards"]


_SYNTAX = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Call, ast.Attribute, ast.Name, ast.Constant),
    *(ast.Load, ast.cmpop, ast.boolop, ast.operator, ast.unaryop),
)
_CHANGES: tuple[Callable[[int], int], ...] = (lambda size: size + 1, lambda size: 2 * size, lambda _: 1)
_CHECKS: dict[tuple[Sequence[str], Sequence[str]], Callable[..., bool]] = {}  # compiled, by names and conditions


@dataclasses.dataclass(frozen=True, slots=True)
class Guard:
    """A condition on the inputs.

    Attributes:
        condition: an expression of Python over the inputs by name, such as ``x.size(0) <= 4``.
        line: the line of the model that asked for it, where it is known.
    """

    condition: str
    line: str = ""

    def __str__(self) -> str:
        return f"{self.condition}  # {self.line}" if self.line else self.condition

    @classmethod
    def read(cls, text: str) -> Guard:
        """The guard that prints as ``text``."""
        condition, _, line = text.partition("  # ")
        return cls(condition, line)


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """An input of the network that was recorded.

    Attributes:
        name: its name.
        shape: that of the example, empty for what is no tensor.
        dtype: the element type of the example, or ``None`` for what is no tensor.
        free: axes along which other sizes are possible, as far as guards allow.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    free: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Conditions under which a recording holds, all of them.

    Attributes:
        inputs: the inputs, in the order in which a network takes them.
        conditions: the guards.

    Example:
        >>> import torch
        >>> x = Input("x", (2, 3), torch.float32, free=(0,))
        >>> guards = Guards(inputs=(x,), conditions=(Guard("x.dim() == 2"), Guard("x.size(0) <= 4", "model.py:31")))
        >>> print(guards)
        x.dim() == 2
        x.size(0) <= 4  # model.py:31
        >>> [str(guard) for guard in guards.broken({"x": torch.zeros(5, 3)})]
        ['x.size(0) <= 4  # model.py:31']
        >>> guards.other_shapes()
        [{'x': (3, 3)}, {'x': (4, 3)}, {'x': (1, 3)}]
    """

    inputs: tuple[Input, ...]
    conditions: tuple[Guard, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.conditions))

    def __iter__(self) -> Iterator[Guard]:
        return iter(self.conditions)

    def __len__(self) -> int:
        return len(self.conditions)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs."""
        return tuple(each.name for each in self.inputs)

    def broken(self, values: Mapping[str, Any]) -> list[Guard]:
        """Those that inputs, by name, do not meet; an input that is not named counts as ``None``."""
        names, inputs = self.names, [values.get(each.name) for each in self.inputs]
        if guards_hold(names, tuple(map(str, self.conditions)), inputs):
            return []
        return [guard for guard in self.conditions if not guards_hold(names, (str(guard),), inputs)]

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse inputs, by name, that break a guard.

        Raises:
            GuardError: they do.
        """
        if broken := self.broken(values):
            raise _error(broken, values)

    def of_types(self) -> Guards:
        """These, and that inputs of floating-point types have the example's."""
        kinds = [each for each in self.inputs if each.dtype is not None and each.dtype.is_floating_point]
        types = (Guard(f"{each.name}.dtype == {each.dtype}", "the model decides by element types") for each in kinds)
        return Guards(inputs=self.inputs, conditions=(*self.conditions, *types))

    def other_shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """Shapes of the inputs that are tensors, by name, within the guards and unlike the example's.

        They are there to try a recording on; the model itself may refuse some. Sizes that are equal in the example may
        have to be equal, as those of ids and of their mask: they move together first, and then one by one.
        """
        tensors = [each for each in self.inputs if each.dtype is not None]
        axes = [(each.name, axis, each.shape[axis]) for each in tensors for axis in each.free]
        moves = [{(name, axis) for name, axis, value in axes if value == size} for _, _, size in axes]
        moves += [{(name, axis)} for name, axis, _ in axes]
        shapes = [{each.name: each.shape for each in tensors}]
        for move in moves:
            for change in _CHANGES:
                other = {
                    each.name: tuple(
                        change(size) if (each.name, axis) in move else size for axis, size in enumerate(each.shape)
                    )
                    for each in tensors
                }
                if other not in shapes and self.allow(other):
                    shapes.append(other)
        return shapes[1:]

    def allow(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether inputs of these shapes, and otherwise like the example's, meet all guards."""
        values = {
            each.name: torch.empty(shapes[each.name], dtype=each.dtype, device="meta")
            for each in self.inputs
            if each.name in shapes
        }
        return not self.broken(values)


def write_guards(graph: fx.Graph, placeholders: Mapping[str, fx.Node], guards: Guards) -> None:
    """Have a network's graph check its guards: one call, at the point where the graph is being written.

    Args:
        graph: the graph.
        placeholders: its inputs by name, as far as it has them: those that are no tensors stand in no condition.
        guards: what is checked; nothing is written where there is none.
    """
    if guards.conditions:
        names = tuple(name for name in guards.names if name in placeholders)
        values = [placeholders[name] for name in names]
        graph.call_function(check_guards, (names, tuple(map(str, guards.conditions)), *values))


def check_guards(names: Sequence[str], conditions: Sequence[str], *values: Any) -> None:
    """Refuse inputs that break one of the conditions on them.

    Args:
        names: of the inputs.
        conditions: guards, as they print.
        values: the inputs.

    Raises:
        GuardError: they do.
    """
    if not guards_hold(names, conditions, values):
        guards = Guards(inputs=tuple(map(Input, names)), conditions=tuple(map(Guard.read, conditions)))
        guards.check(dict(zip(names, values, strict=True)))


def guards_hold(names: Sequence[str], conditions: Sequence[str], values: Sequence[Any]) -> bool:
    """Whether all conditions hold; one that cannot be evaluated, as of an input that is ``None``, does not."""
    key = names, conditions
    if key not in _CHECKS:
        _CHECKS[key] = _compiled(names, conditions)
    if torch.compiler.is_compiling():
        return _CHECKS[key](*values)
    try:
        return _CHECKS[key](*values)
    except (AttributeError, IndexError, TypeError, ZeroDivisionError):
        return False


def _compiled(names: Sequence[str], conditions: Sequence[str]) -> Callable[..., bool]:
    """A function of the inputs; only what is written in guards is allowed in the text."""
    expressions = [ast.parse(condition, mode="eval") for condition in conditions]
    for expression, condition in zip(expressions, conditions, strict=True):
        for node in ast.walk(expression):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
            unknown = isinstance(node, ast.Name) and node.id not in (*names, *FUNCTIONS, "torch")
            if not isinstance(node, _SYNTAX) or private or unknown:
                raise GuardError(f"{condition!r} is no guard: {ast.unparse(node)} does not stand in one")
    body = " and ".join(f"({ast.unparse(expression)})" for expression in expressions) or "True"
    function: Callable[..., bool] = eval(f"lambda {', '.join(names)}: {body}", {**FUNCTIONS, "torch": torch})  # noqa: S307
    return function


def _error(broken: Sequence[Guard], values: Mapping[str, Any]) -> GuardError:
    names = {node.id for guard in broken for node in ast.walk(ast.parse(guard.condition)) if isinstance(node, ast.Name)}
    inputs = ", ".join(f"{name} {_described(value)}" for name, value in values.items() if name in names)
    conditions = "; ".join(f"{guard.condition} ({guard.line})" if guard.line else guard.condition for guard in broken)
    return GuardError(
        f"the network was recorded for inputs with {conditions}, and was given {inputs}; pass inputs within "
        "these guards (print them: net.guards), or convert again with such example_inputs",
        tuple(map(str, broken)),
    )


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return repr(value)
