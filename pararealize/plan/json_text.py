"""JSON text -> a value that has checked itself, or one error with all faults of the text, each at its place."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pararealize.errors import PararealizeError, PlanError
from pararealize.manifest import unique_keys
from pararealize.table import quantity, shortened

__all__ = ["finite", "parse_json", "read_json"]

T = TypeVar("T")

LARGEST = 64 * 2**20  # characters; a plan of a thousand segments has about two million
DEEPEST = 32  # lists and objects within one another; plans have five
MOST_FAULTS = 12  # that a message lists
MOST_KEYS = 3  # unknown ones of one place, likewise
LONGEST_LINE = 600
LONGEST_WORD = 60  # characters of a key, and of the place of a fault


def finite(value: Any) -> Any:
    """The same for a JSON document: numbers that are not finite, which JSON has none of, become null.

    Example:
        >>> finite({"losses": (1.5, float("nan"))})
        {'losses': [1.5, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_json(text: Any, writer: str, error: type[PararealizeError] = PlanError) -> Any:
    """What a JSON text says, whatever it is.

    A text that readers may take differently is none: one with a key twice in an object, or in another encoding than
    UTF-8.

    Raises:
        PlanError: it is no JSON, or longer or deeper than any that ``writer`` writes, a method; or another ``error``.
    """
    if not isinstance(text, str | bytes):
        raise error(
            f"this is a {type(text).__name__} and no JSON text; pass the text that {writer} wrote, such as "
            "path.read_text() of a file or json.dumps(...) of a dict"
        )
    remedy = f"pass the text that {writer} wrote"
    if len(text) > LARGEST:
        raise error(f"this text has {len(text):,} characters, and at most {LARGEST:,} are read; {remedy}")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as fault:
        raise error(f"this is not JSON: {shortened(str(fault), 500)}; {remedy}") from fault
    if _is_deeper(value, DEEPEST):
        raise error(f"this text has more than {DEEPEST} lists and objects within one another; {remedy}")
    return value


def read_json(adapter: TypeAdapter[T], text: str | bytes, noun: str, error: type[PararealizeError] = PlanError) -> T:
    """The value of a JSON text that has the right form and does not contradict itself.

    Nothing is turned into another type: ``"3"``, ``3.0`` and ``true`` are no whole numbers.

    Raises:
        PlanError: it has not, or does; ``noun`` says what it should have been. Or another ``error``.
    """
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as fault:
        lines = _lines(fault, noun)
        raise error(f"this {noun} cannot be read:\n" + "\n".join(lines)) from None  # whose text may be endless


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether there are more containers within one another than so many; without recursion."""
    level = [value]
    for _ in range(depth + 1):
        level = [item for value in level for item in _items(value)]
    return bool(level)


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _lines(error: ValidationError, noun: str) -> list[str]:
    """A line a fault, at its place; the first few of many, and of the unknown keys of one place."""
    lines: list[str] = []
    unknown: dict[tuple[int | str, ...], int] = {}
    for fault in error.errors(include_url=False, include_context=False):
        place, message = fault["loc"], fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "unexpected_keyword_argument":
            unknown[place[:-1]] = unknown.get(place[:-1], 0) + 1
            if unknown[place[:-1]] > MOST_KEYS:
                continue
        elif isinstance(fault["input"], str | int | float | None):
            message += f"; it is {shortened(repr(fault['input']), LONGEST_WORD)}"
        lines.append(shortened(f"{_place(place, noun)}: {message}", LONGEST_LINE))
    lines += [
        f"{_place(place, noun)}: and {quantity(number - MOST_KEYS, 'unknown key')} more"
        for place, number in unknown.items()
        if number > MOST_KEYS
    ]
    more = len(lines) - MOST_FAULTS
    return [*lines[:MOST_FAULTS], f"and {quantity(more, 'fault')} more"] if more > 0 else lines


def _place(keys: Sequence[int | str], noun: str) -> str:
    return shortened(".".join(_word(key) for key in keys), 2 * LONGEST_WORD) or noun


def _word(key: int | str) -> str:
    """A key as it is, where it is a word; otherwise in quotation marks."""
    word = shortened(str(key), LONGEST_WORD)
    return word if re.fullmatch(r"[\w-]+", word) else repr(word)
