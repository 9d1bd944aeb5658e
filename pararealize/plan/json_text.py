"""JSON text -> a value that has checked itself, or one error with all faults of the text, each at its place."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pararealize.errors import PlanError

__all__ = ["parse_json", "read_json"]

T = TypeVar("T")


def parse_json(text: Any, writer: str) -> Any:
    """What a JSON text says, whatever it is.

    Raises:
        PlanError: it is no JSON; names the method, ``writer``, that writes such texts.
    """
    if not isinstance(text, str | bytes):
        raise PlanError(
            f"this is a {type(text).__name__} and no JSON text; pass the text that {writer} wrote, such as "
            "path.read_text() of a file or json.dumps(...) of a dict"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"this is not JSON: {error}; pass the text that {writer} wrote") from error


def read_json(adapter: TypeAdapter[T], text: str, noun: str) -> T:
    """The value of a JSON text that has the right form and does not contradict itself.

    Raises:
        PlanError: it has not, or does; ``noun`` says what it should have been.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or noun}: {fault['msg']}" for fault in error.errors()]
        raise PlanError(f"this {noun} cannot be read:\n" + "\n".join(faults)) from error
