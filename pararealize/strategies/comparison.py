"""StrategyComparison: predicted strategies side by side, curves and one sentence of advice; as text and JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pararealize.control_characters import visible
from pararealize.table import aligned, count, duration, quantity, share, shortened

from .strategy import Strategy

__all__ = ["VERSION", "CurvePoint", "StrategyComparison"]

VERSION = 1
LONGEST = 400  # characters of a note, as it is printed
_HEAD = ("strategy", "how", "devices", "step", "speed-up", "memory", "sent", "busy", "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The speed-up of one strategy where one number is another.

    Attributes:
        axis: ``"devices"``, at the batch that was asked for, or ``"batch"``, on the devices that were.
        value: of that axis.
        name: of the strategy.
        speedup: over one device with the same batch.
        fits: whether a device has memory for it.
    """

    axis: Literal["devices", "batch"]
    value: int
    name: str
    speedup: float
    fits: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StrategyComparison:
    """What a step takes by every strategy.

    Attributes:
        model: its name.
        devices: how many there are.
        batch: samples a step.
        device: the name of the device profile.
        memory: bytes that a device has.
        link: what lies between devices, in words.
        basis: where seconds come from, in words.
        training: strategies for a training step, the fastest that fits first.
        latency: strategies for one sample, forward alone, likewise.
        curves: speed-ups against devices and batch.
        notes: what could not be compared, and why.
        advice: what to do, in a sentence or two.
    """

    model: str
    devices: int
    batch: int
    device: str
    memory: float
    link: str
    basis: str
    training: tuple[Strategy, ...]
    latency: tuple[Strategy, ...]
    curves: tuple[CurvePoint, ...] = ()
    notes: tuple[str, ...] = ()
    advice: str = ""

    WIDTH: ClassVar[int] = 120

    @property
    def fastest(self) -> Strategy | None:
        """Of those that fit, for training."""
        return next((strategy for strategy in self.training if strategy.fits), None)

    def to_json(self) -> str:
        """A JSON document with every row."""
        document: dict[str, Any] = {"version": VERSION}
        names = ("model", "devices", "batch", "device", "memory", "link", "basis")
        document |= {name: getattr(self, name) for name in names}
        document["training"] = [strategy.to_dict() for strategy in self.training]
        document["latency"] = [strategy.to_dict() for strategy in self.latency]
        document["curves"] = [dataclasses.asdict(point) for point in self.curves]
        document |= {"notes": list(self.notes), "advice": self.advice}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        where = f"{quantity(self.devices, 'device')} ({self.device}, {count(self.memory)}B each; {self.link})"
        parts = [
            f"{self.model}: a training step of {quantity(self.batch, 'sample')} on {where}",
            _table(self.training),
            "one sample, forward alone:",
            _table(self.latency),
        ]
        said = [f"note: {shortened(note, LONGEST)}" for note in self.notes]
        notes = [textwrap.fill(note, self.WIDTH) for note in (f"note: {self.basis}", *said, f"advice: {self.advice}")]
        return visible("\n\n".join([*parts, *notes]))


def _table(rows: Sequence[Strategy]) -> str:
    lines = [
        (
            row.name,
            row.detail,
            str(row.devices),
            duration(row.step),
            f"{row.speedup:.2f}×",
            f"{count(row.memory)}B",
            f"{count(row.sent)}B" if row.sent else "",
            share(row.utilisation),
            _marks(row),
        )
        for row in rows
    ]
    return aligned([_HEAD, *lines], "llrrrrrrl")


def _marks(row: Strategy) -> str:
    return ", ".join(filter(None, ["" if row.fits else "too large", "" if row.exact else "another network"]))
