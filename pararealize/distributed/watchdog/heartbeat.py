"""What a rank tells the others through the watchdog -> a line of JSON, and back.

A message is one of

    Heartbeat     twice a second: what the rank is doing
    Failure       once: the first failure that the rank has learnt of, its own or another's
    Farewell      last: the rank closes its watchdog in good order

and ``Loss`` stands in the receiver's list where a connection ended; it is never sent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["Failure", "Farewell", "Heartbeat", "Loss", "Message", "decode", "encode"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a rank is doing.

    Attributes:
        doing: in words, such as ``"g^2 forward"``; of one that waits, what it waits for; empty between steps.
        seconds: for how long, when this was sent.
        waits: whether it waits for others.
        peer: for which one, where one is known.
        step: how many steps it has begun.
        sent: how many messages it has sent, by the rank that they are for.
        took: how many messages it has taken, by the rank that they are of.
        latest: its last call in words; empty before the first.
        place: where its main thread stands, in words.
        calls: of the calls that the ranks of one network make alike, the last of each name, by number.
        shared_calls: of those that the ranks of all copies make alike.
    """

    doing: str = ""
    seconds: float = 0.0
    waits: bool = False
    peer: int | None = None
    step: int = 0
    sent: Mapping[int, int] = dataclasses.field(default_factory=dict)
    took: Mapping[int, int] = dataclasses.field(default_factory=dict)
    latest: str = ""
    place: str = ""
    calls: Mapping[int, str] = dataclasses.field(default_factory=dict)
    shared_calls: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The rank at fault, and the whole sentence that every rank raises."""

    rank: int
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Farewell:
    """The rank leaves in good order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """The connection to a rank has ended, or the process of one that had left.

    Attributes:
        how: completes a sentence, such as ``"died (its process is gone)"``.
        status: of its process, where it is known; a signal that ended it is a negative number.
    """

    how: str
    status: int | None = None


Message: TypeAlias = Heartbeat | Failure | Farewell
_KINDS: dict[str, type[Message]] = {"heartbeat": Heartbeat, "failure": Failure, "farewell": Farewell}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """One line. Counts by rank become pairs: JSON has no numbers as keys."""
    fields = {key: [*v.items()] if isinstance(v, dict) else v for key, v in dataclasses.asdict(message).items()}
    return json.dumps({"kind": _NAMES[type(message)], **fields}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line."""
    fields: dict[str, Any] = json.loads(line)
    kind = _KINDS[fields.pop("kind")]
    fields = {key: dict(value) if isinstance(value, list) else value for key, value in fields.items()}
    return kind(**fields)
