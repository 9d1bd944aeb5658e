"""Comparison: an original and the parareal network made from it, side by side; as text and JSON. Plain data."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from pararealize.plan.json_text import finite
from pararealize.table import aligned, duration, quantity

__all__ = ["Comparison", "Latency", "Quality"]

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a network classifies.

    Attributes:
        accuracy: share of the samples that are classified right, from 0 to 1.
        loss: mean cross-entropy.
    """

    accuracy: float
    loss: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long a call takes, in this process.

    Attributes:
        batch: samples of a call.
        original: median seconds of the original.
        parareal: median seconds of the parareal network.
        rounds: calls of each.
    """

    batch: int
    original: float
    parareal: float
    rounds: int

    @property
    def ratio(self) -> float:
        """``original / parareal``: above 1, the parareal network is the faster one."""
        return self.original / self.parareal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An original and a parareal network on the same samples; it prints as a table.

    Attributes:
        model: the original's class name.
        n: segments of a window.
        samples: that both were called with.
        relative_error: ``‖y − y₀‖ / ‖y₀‖`` over all floating-point and complex tensors of all outputs, y₀ the
            original's; a ``loss`` is no output.
        cosine: of both outputs' ``logits``, or first tensors with samples, the mean over samples; NaN without such.
        same_class: share with the same largest logit; ``None`` where outputs are no logits.
        original, parareal: how well each classifies; ``None`` without labels.
        latencies: by batch size.
        predicted_speedup: of the plan, with n devices and free messages.
        device: on which both ran.
        threads: of the CPU, of one operation.
    """

    model: str
    n: int
    samples: int
    relative_error: float
    cosine: float
    same_class: float | None
    original: Quality | None
    parareal: Quality | None
    latencies: tuple[Latency, ...]
    predicted_speedup: float
    device: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it; numbers that are not finite become null."""
        values = dataclasses.asdict(self)
        for row, latency in zip(values["latencies"], self.latencies, strict=True):
            row["ratio"] = latency.ratio
        plain: dict[str, Any] = {"version": VERSION, **finite(values)}
        return plain

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def __str__(self) -> str:
        rows: list[tuple[str, str | None, str | None]] = [(f"{self.samples} samples", "original", f"n = {self.n}")]
        if self.original is not None and self.parareal is not None:
            rows.append(("accuracy", f"{self.original.accuracy:.2%}", f"{self.parareal.accuracy:.2%}"))
            rows.append(("loss", f"{self.original.loss:.4f}", f"{self.parareal.loss:.4f}"))
        if self.same_class is not None:
            rows.append(("same class", None, f"{self.same_class:.2%}"))
        rows.append(("output, relative error", None, f"{self.relative_error:.3g}"))
        if not math.isnan(self.cosine):
            rows.append(("output, cosine", None, f"{self.cosine:.4f}"))
        text = aligned(rows, "l")
        if not self.relative_error < 1:
            text += "\nan output error of 1 or more is no better than answering zero: take more windows, or calibrate"
        if self.latencies:
            times = [("a call", "original", f"n = {self.n}", "ratio")]
            times += [
                (f"batch {row.batch}", duration(row.original), duration(row.parareal), f"{row.ratio:.2f}×")
                for row in self.latencies
            ]
            where = self.device if self.device != "cpu" else quantity(self.threads, "thread")
            rounds = min(row.rounds for row in self.latencies)
            text += (
                f"\n\n{aligned(times, 'l')}\nmedians of at least {rounds} calls in turn, {where}; "
                f"predicted with a device for each of {self.n} segments: {self.predicted_speedup:.2f}×"
            )
        return text
