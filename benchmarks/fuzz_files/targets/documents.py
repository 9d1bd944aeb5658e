"""What a file says, and what was read from it: whether these are the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..trial import PRINTED, unreadable

__all__ = ["difference", "reread"]


class Written(Protocol):
    """A value that prints, and writes itself as JSON."""

    def to_json(self) -> str:
        """The text."""


T = TypeVar("T", bound=Written)


def reread(file: Path, content: bytes, read: Callable[[str | bytes], T], *, as_bytes: bool) -> tuple[T, str]:
    """The value that is read from a file of this content; and how, written again or printed, it says something else."""
    file.write_bytes(content)
    value = read(_text_of(file, as_bytes=as_bytes))
    return value, difference(content, value.to_json()) or unreadable(str(value), PRINTED)


def _text_of(file: Path, *, as_bytes: bool) -> str | bytes:
    """A file's text, or its bytes where it has none, which JSON may be given as, too."""
    content = file.read_bytes()
    if as_bytes:
        return content
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def difference(file: str | bytes, again: str) -> str:
    """Where a JSON file says something that what was read from it, written again, does not; nothing where all is alike.

    Keys that the file leaves out have defaults.
    """
    return _first_difference(json.loads(file), json.loads(again), "")


def _first_difference(before: Any, after: Any, where: str) -> str:
    if isinstance(before, bool) or isinstance(after, bool) or before is None or after is None:
        return "" if before is after else f"{where} is {after!r}, and the file says {before!r}"
    if isinstance(before, dict) and isinstance(after, dict):
        missing = sorted(set(before) - set(after))
        faults = [f"{where} is without {missing}"] if missing else []
        faults += [
            _first_difference(value, after[key], f"{where}.{key}") for key, value in before.items() if key in after
        ]
        return next(filter(None, faults), "")
    if isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            return f"{where} has {len(after)} items, and the file {len(before)}"
        pairs = enumerate(zip(before, after, strict=True))
        return next(filter(None, (_first_difference(*pair, f"{where}.{i}") for i, pair in pairs)), "")
    numbers = isinstance(before, int | float) and isinstance(after, int | float)
    same = before == after or (numbers and math.isclose(before, after, rel_tol=1e-15))
    return "" if same and (numbers or type(before) is type(after)) else f"{where} is {after!r}, the file: {before!r}"
