"""A recorded call, run again at other sizes -> whether what it gives has the sizes that the recording says it has.

A call decides much on the sizes of what it is given (is it contiguous? does it broadcast?), and the graph calls it
anew, so that most of it is nobody's business. Some decides what comes out: a slice beyond the end, the number of
chunks, ``squeeze``. Which does is found by running the call at other sizes, on tensors without memory: where it fails
or gives other sizes than the recording computed, the simplest of the call's decisions that was another there, and the
same wherever all went well, is a condition under which the recording holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from pararealize.restore import attributes_as_found

from .expressions import UnknownFunctionError, operations, symbols_of
from .leaves import is_layer, size_kind
from .operations import tensors_in
from .sizes import Decision, Sizes, expression_of, has_symbols, layout_of, line_of_model, sizes_in

__all__ = ["SizeChecks"]

_MOST_RUNS = 24
_MOST_OPERATIONS = 30  # in a size; arithmetic on longer expressions takes longer than all the rest
_Assignment = dict[Any, int]


class LongSizeError(Exception):
    """A size became too long an expression in the inputs' sizes."""


_TOO_FEW = "Expected more than 1"  # value a channel, or spatial element: torch.nn.functional, of norms that train


class SizeChecks:
    """Runs calls at other sizes than those that were recorded.

    Args:
        sizes: the recording's symbols and decisions, to which conditions are added.
        empty: makes a tensor of a shape, strides, an element type and a device.
        checked: calls that need no check; those that are checked are added.
        repeated: whether the call that was made last was known, so that it was not really made.
    """

    def __init__(
        self,
        sizes: Sizes,
        empty: Callable[..., torch.Tensor],
        checked: set[Any],
        repeated: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sizes, self.empty, self._repeated = sizes, empty, repeated
        self._checked = checked
        self._pool: dict[Any, Any] = {}  # what calls decided so far: torch may know the answer, and not ask again

    def call(self, target: Any, run: Callable[[Any, Any], Any], args: Any, kwargs: Any) -> Any:
        """Make a call that is one node, and find the conditions under which it gives what it gives.

        Args:
            target: what is called: equal ones are checked once for arguments of equal sizes.
            run: makes the call.
            args: its arguments.
            kwargs: the others.
        """
        self.sizes.inner = {}
        try:
            try:
                result = run(args, kwargs)
            except Exception as error:
                values = isinstance(error, DataDependentOutputException | DynamicOutputShapeException)
                if not has_symbols((args, kwargs)) or (values and not isinstance(target, nn.Module)):
                    raise
                try:
                    return self._learn(_repeatable(target, run), args, kwargs)
                except Exception:  # noqa: BLE001 - it cannot be called with plain sizes either
                    raise error from None
            if self._repeated():
                return result
            if any(operations(size) > _MOST_OPERATIONS for size in sizes_in(result)):
                raise LongSizeError
            if self.sizes.inner or next(tensors_in(result), None) is not None:
                self._check(_call_key(target, args, kwargs), _repeatable(target, run), args, kwargs, result)
            return result
        finally:
            self.sizes.inner = None

    def _check(self, key: Any, run: Callable[[Any, Any], Any], args: Any, kwargs: Any, result: Any) -> None:
        """Find the conditions under which a call gives what it gave; calls of equal keys are checked once."""
        inner, self.sizes.inner = self.sizes.inner or {}, {}
        self._pool.update(inner)
        try:
            if key in self._checked:
                return
            self._checked.add(key)
        except TypeError:  # an argument that cannot be hashed
            pass
        symbols = sorted({symbol for size in sizes_in((args, kwargs)) for symbol in symbols_of(size)}, key=str)
        passes, failures = [], []
        numbers = _numbers_in((args, kwargs))
        for assignment in self._assignments(symbols, inner, numbers):
            try:
                with no_python_dispatcher():  # which symbols need, and which takes long
                    other = run(*self.sizes.at((args, kwargs), assignment, self.empty))
            except Exception as error:  # noqa: BLE001 - whatever it is: it cannot be called so
                # what one value a channel is too few for is the batch norm's train mode, and not the recording
                if _TOO_FEW not in str(error):
                    failures.append((assignment, False))
                continue
            if self._agree(result, other, assignment):
                passes.append(assignment)
            else:
                failures.append((assignment, True))
        while failures := [(failure, differs) for failure, differs in failures if self._is_allowed(failure)]:
            self._explain(failures, passes, symbols, numbers)
            failures = failures[1:]

    # Which sizes to try ---------------------------------------------------------------------------------------------

    def _assignments(self, symbols: list[Any], inner: dict[Any, Any], numbers: set[int]) -> Iterator[_Assignment]:
        """Sizes within the conditions so far: equal ones changed together, each alone, and what flips a decision."""
        hints = self.sizes.hints
        groups = [[s for s in symbols if hints[s] == size] for size in dict.fromkeys(hints[s] for s in symbols)]
        moves = [*groups, *([s] for group in groups if len(group) > 1 for s in group)]
        tried: list[_Assignment] = []
        for move in moves:
            size = hints[move[0]]
            near = (n + d for n in sorted(numbers) for d in (0, 1, -1) if n + d > 0 and len(move) == len(groups[0]))
            for other in dict.fromkeys((size + 1, 2 * size, 1, *near)):
                yield from self._new({**hints, **dict.fromkeys(move, other)}, tried)
        for expression, answer in inner.items():
            mine = symbols_of(expression)
            numbers = {int(n) for n in getattr(expression, "atoms", lambda *_: ())() if getattr(n, "is_Integer", False)}
            others = sorted({n + d for n in numbers for d in (-1, 0, 1) if n + d > 0})
            flips = (
                assignment
                for symbol in mine
                for other in others
                if self._answer(expression, assignment := {**hints, symbol: other}) not in (answer, None)
            )
            if all(self._answer(expression, assignment) == answer for assignment in tried):
                for assignment in flips:
                    yield from self._new(assignment, tried)
                    break

    def _new(self, assignment: _Assignment, tried: list[_Assignment]) -> Iterator[_Assignment]:
        if assignment not in (self.sizes.hints, *tried) and len(tried) < _MOST_RUNS and self._is_allowed(assignment):
            tried.append(assignment)
            yield assignment

    def _is_allowed(self, assignment: _Assignment) -> bool:
        """Whether the conditions so far hold; one that asks for a value is no reason to leave it alone."""
        return all(
            self._answer(decision.expression, assignment) == decision.answer
            for decision in self.sizes.decisions.values()
        )

    def _answer(self, expression: Any, assignment: _Assignment) -> Any:
        try:
            return self.sizes.value(expression, assignment)
        except (UnknownFunctionError, ArithmeticError, ValueError):
            return None

    # What comes out -------------------------------------------------------------------------------------------------

    def _agree(self, recorded: Any, other: Any, assignment: _Assignment) -> bool:
        """Whether what came out has the sizes that the recording says it has."""
        if isinstance(recorded, torch.Tensor):
            if not isinstance(other, torch.Tensor) or recorded.dtype != other.dtype:
                return False
            shape, _, _, _ = layout_of(recorded)
            return tuple(self._answer(size, assignment) for size in shape) == tuple(other.shape)
        if isinstance(recorded, torch.SymInt | torch.SymFloat | torch.SymBool):
            return bool(self._answer(expression_of(recorded), assignment) == other)
        if isinstance(recorded, dict):
            recorded, other = list(recorded.items()), list(other.items()) if isinstance(other, dict) else None
        if isinstance(recorded, tuple | list):
            return (
                isinstance(other, tuple | list)
                and len(recorded) == len(other)
                and all(self._agree(a, b, assignment) for a, b in zip(recorded, other, strict=True))
            )
        return bool(recorded == other) if isinstance(recorded, bool | int | float | str) else True

    def _explain(
        self, failures: list[tuple[_Assignment, bool]], passes: list[_Assignment], symbols: list[Any], numbers: set[int]
    ) -> None:
        """Add the condition that the first failure breaks, and that holds wherever all went well.

        Of several it is the one that most failures break, and of these the simplest.
        """
        import sympy  # type: ignore[import-untyped]

        hints = self.sizes.hints
        failure, differs = failures[0]
        moved = [symbol for symbol in symbols if failure[symbol] != hints[symbol]]
        reasons = {
            expression: answer
            for expression, answer in {**self._pool, **_simple_reasons(moved, hints, numbers)}.items()
            if not set(moved).isdisjoint(symbols_of(expression))
            and self._answer(expression, failure) != answer
            and all(self._answer(expression, assignment) == answer for assignment in passes)
        }
        if reasons:

            def rank(reason: Any) -> tuple[int, int, str]:
                broken = sum(self._answer(reason, other) != reasons[reason] for other, _ in failures)
                return -broken, operations(reason), str(reason)

            self._add(min(reasons, key=rank), reasons)
            return
        for symbol in moved:
            partners = [s for s in symbols if hints[s] == hints[symbol] and failure[s] != failure[symbol]]
            if partners:  # sizes that are equal in the example, and that went well together
                equal = sympy.Eq(*sorted((symbol, partners[0]), key=str))
                self._add(equal, {equal: True})
                return
        for symbol in moved:
            # where it fails, the model fails too, and there is nothing to say unless it fails at all other sizes
            if differs or not any(assignment[symbol] != hints[symbol] for assignment in passes):
                self._add(symbol, hints)

    def _add(self, expression: Any, answers: Any) -> None:
        self.sizes.decisions.setdefault(expression, Decision(expression, answers[expression], line_of_model()))

    # Calls that torch makes with plain sizes only -------------------------------------------------------------------

    def _learn(self, run: Callable[[Any, Any], Any], args: Any, kwargs: Any) -> Any:
        """What a call gives that cannot be made with symbols: made at several sizes, from which its own are learnt.

        A size of the result is affine in the symbols, or the symbol's size is a condition from now on.
        """
        hints = self.sizes.hints
        symbols = {symbol for size in sizes_in((args, kwargs)) for symbol in symbols_of(size)}
        plain = self.sizes.at((args, kwargs), hints, self.empty)
        base = run(*plain)
        if any(tensor._version for tensor in tensors_in(plain)):
            raise NotImplementedError("it changes its arguments in place")
        slopes: dict[Any, list[int]] = {}
        for symbol in sorted(symbols, key=str):
            try:
                other = run(*self.sizes.at((args, kwargs), {**hints, symbol: hints[symbol] + 1}, self.empty))
                sizes = zip(sizes_in(base), sizes_in(other), strict=True)
                slopes[symbol] = [b - a for a, b in sizes]
            except Exception:  # noqa: BLE001 - whatever it is: it cannot be called so
                self._add(symbol, hints)
        numbers = iter(range(sum(1 for _ in sizes_in(base))))

        def symbolic(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                shape = [self._affine(size, next(numbers), slopes) for size in value.shape]
                return self.empty(shape, _strides(shape, value), value.dtype, value.device)
            return value

        result = torch.utils._pytree.tree_map(symbolic, base)
        for step in (2, 3):  # was it affine?
            assignment = {**hints, **{symbol: hints[symbol] + step + i for i, symbol in enumerate(slopes)}}
            try:
                other = run(*self.sizes.at((args, kwargs), assignment, self.empty))
            except Exception:  # noqa: BLE001, S112 - some sizes may have to be equal
                continue
            if not self._agree(result, other, assignment):
                for symbol in slopes:
                    self._add(symbol, hints)
        return result

    def _affine(self, size: int, number: int, slopes: dict[Any, list[int]]) -> Any:
        expression: Any = size
        for symbol, changes in slopes.items():
            expression = expression + changes[number] * (symbol - self.sizes.hints[symbol])
        return self.sizes.size(expression) if _changes(slopes, number) else size


def _numbers_in(value: Any) -> set[int]:
    """Plain numbers among the arguments of a call, which its sizes may have to do with."""
    if isinstance(value, slice):
        value = value.start, value.stop, value.step
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    numbers = {value} if type(value) is int and value > 1 else set()
    return numbers.union(*map(_numbers_in, items))


def _simple_reasons(symbols: list[Any], hints: _Assignment, numbers: set[int]) -> dict[Any, Any]:
    """Conditions on one size and one number, that may be why a call fails at other sizes, and what they are here."""
    import sympy
    from torch.utils._sympy.functions import Mod

    reasons: dict[Any, Any] = {}
    for symbol in symbols:
        size = hints[symbol]
        for number in numbers:
            reasons |= {symbol <= number: size <= number, symbol >= number: size >= number}
            if size % number == 0:
                reasons[sympy.Eq(Mod(symbol, number), 0)] = True
    return reasons


def _repeatable(target: Any, run: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A call that leaves a module's Python state as it was."""
    if not isinstance(target, nn.Module) or is_layer(target):
        return run

    def repeat(args: Any, kwargs: Any) -> Any:
        with attributes_as_found(target.modules()):
            return run(args, kwargs)

    return repeat


def _call_key(target: Any, args: Any, kwargs: Any) -> Any:
    """Equal for calls that need one check."""
    kind = size_kind(target)
    if kind is None:
        return target, _key(args), _key(kwargs)
    layouts = [layout_of(tensor)[:2] for tensor in tensors_in((args, kwargs))]
    # plain sizes are channels here, save for 1, which broadcasts; the order of strides is that of axes in memory
    shapes = [tuple(size if size == 1 or symbols_of(size) else None for size in shape) for shape, _ in layouts]
    plain = [value for value in (*args, *kwargs.values()) if isinstance(value, int | float)]
    return kind, tuple(shapes), tuple(plain)


def _key(value: Any) -> Any:
    """Equal for arguments of equal sizes and equal plain values, whatever the element types."""
    if isinstance(value, torch.Tensor):
        return layout_of(value)[:2]
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return expression_of(value)
    if isinstance(value, slice):
        value = value.start, value.stop, value.step
    if isinstance(value, dict):
        return tuple((key, _key(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    return type(value), value


def _changes(slopes: dict[Any, list[int]], number: int) -> bool:
    """Whether a size, by its number, changes with any symbol."""
    return any(changes[number] for changes in slopes.values())


def _strides(shape: Iterable[Any], value: torch.Tensor) -> list[Any]:
    """Strides of a tensor of this shape whose axes lie in memory in the same order as another one's."""
    shape = list(shape)
    strides: list[Any] = [1] * len(shape)
    step: Any = 1
    for axis in sorted(range(len(shape)), key=lambda axis: (value.stride(axis), -axis)):
        strides[axis] = step
        step = step * shape[axis]
    return strides
