"""What a rank tells the others through the watchdog -> a line of JSON, and back.

A message is one of

    Heartbeat     twice a second: what the rank is doing
    Announcement  with each call: which one it is, and what it is with
    Failure       once: the first failure that the rank has learnt of, its own or another's
    Farewell      last: the rank closes its watchdog in good order

and ``Loss`` stands in the receiver's list where a connection ended; it is never sent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from pararealize.errors import DisagreementError, DistributedError, RankError

__all__ = ["Announcement", "Failure", "Farewell", "Heartbeat", "Loss", "Message", "decode", "encode"]


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A call that the rank begins, one of those that some ranks make together; nothing of it has been sent yet.

    Attributes:
        calls: whose calls these are, by the name of :class:`~.shared_calls.SharedCalls`.
        number: which one it is, from 1.
        facts: by name, what all ranks of the call have to have alike.
        samples: by name, some numbers of tensors that all of them have to have alike, up to rounding.
        partial: by name, what those ranks have to have alike that have it.
        fault: why this rank refuses the call; empty where it does not.
        waits: whether it waits for all others' announcements before it sends anything.
    """

    calls: str
    number: int
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, str] = dataclasses.field(default_factory=dict)
    partial: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fault: str = ""
    waits: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The rank at fault, ``None`` where ranks disagree, and the whole sentence that every rank raises."""

    rank: int | None
    message: str

    def error(self, *, earlier: bool = False) -> DistributedError:
        """What a rank raises for it; ``earlier`` says that a call before this one has failed."""
        if self.rank is not None:
            return RankError(self.message, self.rank)
        return DisagreementError("a call before this one has failed: " * earlier + self.message)


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


Message: TypeAlias = Heartbeat | Announcement | Failure | Farewell
_KINDS: dict[str, type[Message]] = {
    "heartbeat": Heartbeat,
    "announcement": Announcement,
    "failure": Failure,
    "farewell": Farewell,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """One line. Mappings become pairs: JSON has no numbers as keys."""
    values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    fields = {key: [*v.items()] if isinstance(v, dict) else v for key, v in values.items()}
    return json.dumps({"kind": _NAMES[type(message)], **fields}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line."""
    fields: dict[str, Any] = json.loads(line)
    kind = _KINDS[fields.pop("kind")]
    fields = {key: dict(value) if isinstance(value, list) else value for key, value in fields.items()}
    return kind(**fields)
