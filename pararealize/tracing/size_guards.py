"""What two recordings decided on sizes -> guards: the conditions on inputs under which both hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from .example import Example
from .expressions import UnknownFunctionError, symbols_of, text_of
from .guards import Guard, Guards, Input
from .sizes import Decision, Sizes

__all__ = ["contradict", "follows_batch", "guards_of", "pins_of"]


def contradict(first: Sizes, second: Sizes) -> bool:
    """Whether one recording answered a question otherwise than the other would have at its sizes."""
    return any(
        not decision.is_value and bool(sizes.value(decision.expression, sizes.hints)) != bool(decision.answer)
        for mine, sizes in ((first, second), (second, first))
        for decision in mine.decisions.values()
    )


def guards_of(example: Example, recordings: tuple[Sizes, Sizes], *, batch: int, grown: bool) -> Guards:
    """The conditions under which two recordings hold.

    Args:
        example: the inputs.
        recordings: their symbols and decisions.
        batch: the batch size of the first.
        grown: whether the second had one sample more: a number read from the batch size is then followed by what
            differs between the two.
    """
    sizes = recordings[0]
    decisions = list(_decisions(recordings, grown=grown))
    pins = {symbol: decision for decision in decisions if (symbol := _pinned(decision, sizes)) is not None}
    names = {symbol: f"{name}.size({axis})" for symbol, (name, axis) in sizes.inputs.items()}
    guards: dict[str, Guard] = {}
    inputs = []
    for name, value in example.values.items():
        if not isinstance(value, torch.Tensor):
            inputs.append(Input(name))
            continue
        rows = example.batch is not None and value.shape[:1] == (example.batch,)
        shape = (batch, *value.shape[1:]) if rows else tuple(value.shape)
        axes = _Axes({axis: symbol for symbol, (owner, axis) in sizes.inputs.items() if owner == name}, rows and grown)
        for guard in axes.guards(name, shape, pins, above_zero=sizes.zero):
            _add(guards, guard)
        inputs.append(Input(name, shape, value.dtype, axes.free(pins)))
    leading = [names[symbol] for symbol in sizes.hints if symbol in sizes.rows and symbol not in pins]
    for name in leading[1:]:  # that these may differ was never seen
        _add(guards, Guard(f"{name} == {leading[0]}"))
    fixed = {symbol: sizes.hints[symbol] for symbol in pins}
    for decision in decisions:
        condition = decision.condition.xreplace(fixed)
        if not symbols_of(condition):
            continue
        try:
            _add(guards, Guard(text_of(condition, names), decision.line))
        except UnknownFunctionError:
            for symbol in symbols_of(condition):
                _add(guards, Guard(f"{names[symbol]} == {sizes.hints[symbol]}", decision.line))
    return Guards(inputs=tuple(inputs), conditions=tuple(guards.values()))


class _Axes(NamedTuple):
    """The axes of an input.

    Attributes:
        symbols: by axis, where the size is one.
        grows: whether the first axis is the batch, and one recording had a sample more.
    """

    symbols: dict[int, Any]
    grows: bool

    def guards(
        self, name: str, shape: tuple[int, ...], pins: Mapping[Any, Decision], *, above_zero: bool
    ) -> Iterator[Guard]:
        """On the number of axes, and on the sizes that are fixed: by what pinned their symbol, or for want of one."""
        yield Guard(f"{name}.dim() == {len(shape)}")
        for axis, size in enumerate(shape):
            symbol = self.symbols.get(axis)
            if symbol is None:
                if not (self.grows and axis == 0):
                    yield Guard(f"{name}.size({axis}) == {size}", "its size was read as a plain number")
            elif symbol in pins:
                yield Guard(f"{name}.size({axis}) == {size}", pins[symbol].line)
            elif above_zero:
                yield Guard(f"{name}.size({axis}) > 0")

    def free(self, pins: Mapping[Any, Decision]) -> tuple[int, ...]:
        """Axes along which other sizes are possible."""
        movable = tuple(sorted(axis for axis, symbol in self.symbols.items() if symbol not in pins))
        return movable or ((0,) if self.grows and not self.symbols else ())


def pins_of(recordings: tuple[Sizes, Sizes], *, grown: bool) -> dict[Any, int]:
    """Symbols for which the recordings hold at one size only, and that size."""
    sizes = recordings[0]
    symbols = (_pinned(decision, sizes) for decision in _decisions(recordings, grown=grown))
    return {symbol: sizes.hints[symbol] for symbol in symbols if symbol is not None}


def _pinned(decision: Decision, sizes: Sizes) -> Any:
    """The symbol that a decision allows one size of, if that is all it says."""
    condition = decision.condition
    if type(condition).__name__ != "Equality":
        return None
    symbol, number = condition.args if condition.args[0] in sizes.hints else reversed(condition.args)
    return symbol if symbol in sizes.hints and getattr(number, "is_Integer", False) else None


def follows_batch(guards: Guards, batch: int) -> bool:
    """Whether any other batch size is within the guards."""
    rows = [each for each in guards.inputs if each.shape[:1] == (batch,) and 0 in each.free]
    shapes = {each.name: each.shape for each in guards.inputs if each.dtype is not None}
    return any(
        guards.allow({**shapes, **{each.name: (other, *each.shape[1:]) for each in rows}})
        for other in (batch + 1, 2 * batch, batch - 1, 1)
        if rows and other not in (batch, 0)
    )


def _decisions(recordings: Iterable[Sizes], *, grown: bool) -> Iterable[Decision]:
    """Every decision once; of a number that follows the batch only what it asks of other sizes."""
    seen: set[Any] = set()
    for sizes in recordings:
        for decision in sizes.decisions.values():
            if decision.expression in seen:
                continue
            seen.add(decision.expression)
            symbols = symbols_of(decision.expression)
            if not (grown and decision.is_value and sizes.rows.intersection(symbols)):
                yield decision
                continue
            for symbol in symbols:
                if symbol not in sizes.rows and symbol not in seen:
                    seen.add(symbol)
                    yield Decision(symbol, sizes.hints[symbol], decision.line)


def _add(guards: dict[str, Guard], guard: Guard) -> None:
    guards.setdefault(guard.condition, guard)
