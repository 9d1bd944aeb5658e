"""A public function -> the same function, which refuses arguments that its annotations do not allow, all at once.

A class of pydantic's -> the same class, whose constructor refuses fields with an error of this library.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from .errors import PararealizeError

__all__ = ["is_allowed", "typed_arguments", "typed_fields"]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
MOST_FAULTS = 12  # that a message lists

_NUMBERS = {int: Integral, float: Real}  # NumPy's numbers are ones too
_WORDS = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None",
    collections.abc.Callable: "a function", collections.abc.Sequence: "a list", collections.abc.Mapping: "a dict",
    collections.abc.Iterable: "a list",
}  # fmt: skip
_SOURCES = {  # of the values of this library, by their classes
    "BlockChain": "find_blocks(capture(model, ...))", "Calibration": "calibrate(net, batches)",
    "Capture": "capture(model, inputs)", "Costs": "count_costs(chain)", "Dataset": "pararealize.data.load(name)",
    "PararealModule": "pararealize(model, n)", "Plan": "make_plan(chain, n) or Plan.from_json(text)",
    "PlannedRows": "make_plan(chain, n) or Plan.from_json(text)",
    "Times": "plan_times(plan)", "Space": "plan.segments[0].x", "CoarsePlan": "plan.coarse_blocks[0]",
}  # fmt: skip


def typed_arguments(error: type[PararealizeError], *besides: str, **errors: type[PararealizeError]) -> Callable[[F], F]:
    """Have the types of a function's arguments checked by its annotations before it runs.

    Args:
        error: what is raised for an argument of another type.
        besides: names of arguments that the function itself looks at.
        errors: other classes of errors, by the names of arguments.

    Example:
        >>> from pararealize.errors import PlanError
        >>> @typed_arguments(PlanError)
        ... def twice(n: int, how: Literal["sum", "product"] = "sum") -> int:
        ...     return 2 * n
        >>> twice(3)
        6
        >>> twice("3", how="both")
        Traceback (most recent call last):
            ...
        pararealize.errors.PlanError: n is '3'; pass a whole number; and how is 'both'; pass 'sum' or 'product'
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.cache
        def hints() -> dict[str, Any]:
            return {name: hint for name, hint in typing.get_type_hints(function).items() if name not in besides}

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments  # a TypeError where it is no call of this function
            faults = {
                name: f"{name} {_fault(arguments[name], hint)}; pass {_words(hint)}"
                for name, hint in hints().items()
                if name in arguments and not is_allowed(arguments[name], hint)
            }
            if faults:
                raise errors.get(next(iter(faults)), error)("; and ".join(faults.values()))
            return function(*args, **kwargs)

        return typing.cast("F", checked)

    return decorate


def typed_fields(error: type[PararealizeError]) -> Callable[[C], C]:
    """Have the constructor of a dataclass of pydantic's, which ``dataclasses.replace`` calls too, raise such an error.

    What is read from a file is not constructed, and raises pydantic's own.

    Example:
        >>> from pydantic.dataclasses import dataclass
        >>> from pararealize.errors import PlanError
        >>> @typed_fields(PlanError)
        ... @dataclass
        ... class Row:
        ...     j: int
        >>> Row(j="two")
        Traceback (most recent call last):
            ...
        pararealize.errors.PlanError: no Row can be made so: j: Input should be a valid integer, ...
    """

    def decorate(kind: C) -> C:
        construct = kind.__init__  # type: ignore[misc]

        @functools.wraps(construct)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                construct(self, *args, **kwargs)
            except ValidationError as fault:
                faults = [
                    ": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, "))))
                    for one in fault.errors(include_url=False, include_context=False, include_input=False)
                ]
                more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
                raise error(
                    f"no {kind.__name__} can be made so: {'; '.join(faults[:MOST_FAULTS])}{more}; change together what "
                    "belongs together, or have it made by the function that makes such values"
                ) from None

        kind.__init__ = checked  # type: ignore[misc]
        return kind

    return decorate


def is_allowed(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that an annotation says, and what lists, tuples and sets hold, too.

    Whole numbers have 64 bits at most: torch's generators, tensors and C++ take no others.

    Example:
        >>> is_allowed(2, int | None), is_allowed(True, int), is_allowed(2, float), is_allowed("a", Literal["a", "b"])
        (True, False, True, True)
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(is_allowed(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return any(isinstance(value, type(option)) and value == option for option in typing.get_args(hint))
    kind = origin or hint
    if kind is None:
        return value is None
    if kind is Any or not isinstance(kind, type):
        return True  # type variables, and Any, which is a class
    if kind in _NUMBERS:
        is_number = isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
        return is_number and not _is_beyond(value)
    if kind in (collections.abc.Sequence, collections.abc.Iterable):
        if isinstance(value, str | bytes):
            return False  # one is meant where a list of them is asked for
        if isinstance(value, list | tuple | set | frozenset | range):
            return all(is_allowed(item, option) for option in typing.get_args(hint) for item in value)
    if kind is type:
        return isinstance(value, type) and issubclass(value, typing.get_args(hint) or object)
    return bool(getattr(kind, "_is_protocol", False)) or isinstance(value, kind)


def _is_beyond(value: Any) -> bool:
    """Whether a whole number has more than 64 bits."""
    return isinstance(value, Integral) and int(value).bit_length() > 63


def _fault(value: Any, hint: Any) -> str:
    """What a value is, or where it is a list, what it holds."""
    if isinstance(value, list | tuple | set | frozenset | range):
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        kinds = [kind for option in options for kind in typing.get_args(option)]
        items = [item for item in value for kind in kinds if not is_allowed(item, kind)]
        if items:
            return f"holds {_value(items[0])}"
    return f"is {_value(value)}"


def _value(value: Any) -> str:
    if _is_beyond(value):  # Python writes out no number of some thousand digits
        return f"a whole number of {int(value).bit_length()} bits, where 63 are the most"
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _words(hint: Any) -> str:
    """What an annotation allows, in words."""
    options = list(dict.fromkeys(_options(hint)))
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)


def _options(hint: Any) -> list[str]:
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return list(map(repr, items))
    if origin in (typing.Union, types.UnionType):
        return [option for item in items for option in _options(item)]
    kind = origin or hint
    if kind in (collections.abc.Sequence, collections.abc.Iterable) and items and items != (Any,):
        return [f"a list, each item {_words(items[0])}"]
    if kind is type:
        return [f"a class of {items[0].__name__}" if items else "a class"]
    name = getattr(kind, "__name__", str(kind))
    source = f", such as {_SOURCES[name]}" if name in _SOURCES else ""
    return [_WORDS.get(kind, f"{'an' if name[0] in 'AEIO' else 'a'} {name}{source}")]
