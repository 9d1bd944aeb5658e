"""Tradeoff: predicted speed-up against measured error, plan by plan; as text and JSON. Plain data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from pararealize.errors import CalibrationError, PlanError
from pararealize.plan.plan import Plan
from pararealize.table import aligned, quantity, shortened

__all__ = ["Tradeoff", "TradeoffRow", "check_tolerance"]

VERSION = 1
MOST_NAMES = 60  # letters of blocks' names in a row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TradeoffRow:
    """One plan, and how near its calibrated network is to the original.

    Attributes:
        plan: where the network is cut, windows and kinds included.
        predicted: the error that was predicted from windows tried one by one; None where they were not.
        error: ‖output - original's‖ / ‖original's‖ on held-out batches, after calibration.
        agreement: the share of samples with the same class, or what the caller measures; None where nothing was.
    """

    plan: Plan
    predicted: float | None
    error: float
    agreement: float | None = None

    @property
    def n(self) -> int:
        """Devices."""
        return self.plan.n

    @property
    def speedup(self) -> float:
        """Predicted, with n devices and the plan's messages, corrections counted."""
        return self.plan.speedup

    @property
    def windows(self) -> int:
        """How many windows have several segments."""
        return sum(not window.sequential for window in self.plan.windows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """Plans from the original to the fastest, measured; it prints as a table.

    Attributes:
        model: the original's class name.
        coarse: the kind of coarse blocks.
        samples: that were fitted to.
        tested: others, that errors are measured on.
        measure: what ``agreement`` is, in words; empty where it is not measured.
        rows: by n, then by speed-up.
    """

    model: str
    coarse: str
    samples: int
    tested: int
    measure: str
    rows: tuple[TradeoffRow, ...]

    @property
    def front(self) -> tuple[TradeoffRow, ...]:
        """The rows that no other beats in both speed-up and error, the slowest first."""
        front: list[TradeoffRow] = []
        for row in sorted(self.rows, key=lambda row: (-row.speedup, row.error)):
            if not front or row.error < front[-1].error:
                front.append(row)
        return tuple(reversed(front))

    def within(self, tolerance: float) -> TradeoffRow:
        """The fastest plan whose measured error is at most that.

        Raises:
            CalibrationError: there is none; says what the nearest is.
        """
        check_tolerance(tolerance)
        fitting = [row for row in self.rows if row.error <= tolerance]
        if not fitting:
            best = min(self.rows, key=lambda row: row.error)
            raise CalibrationError(
                f"no plan stays within an error of {tolerance:g}: the smallest is {best.error:.3g}, at a speed-up of "
                f"{best.speedup:.2f} with {quantity(best.n, 'device')}; allow more, take more batches, or fine-tune"
            )
        return max(fitting, key=lambda row: row.speedup)

    def to_json(self) -> str:
        """A JSON document; :meth:`from_json` reads it."""
        rows = [
            {
                "n": row.n,
                "windows": row.windows,
                "speedup": row.speedup,
                "predicted": row.predicted,
                "error": row.error if math.isfinite(row.error) else None,
                "agreement": row.agreement,
                "plan": json.loads(row.plan.to_json()),
            }
            for row in self.rows
        ]
        head = {"version": VERSION, "model": self.model, "coarse": self.coarse, "samples": self.samples}
        head |= {"tested": self.tested, "measure": self.measure}
        return json.dumps(head | {"rows": rows}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Tradeoff:
        """What :meth:`to_json` gave.

        Raises:
            CalibrationError: it is no such document, or of another version.
        """
        try:
            data: Any = json.loads(text)
            if data["version"] != VERSION:
                raise CalibrationError(f"the trade-off is of version {data['version']!r}, and this reads {VERSION}")
            rows = tuple(
                TradeoffRow(
                    plan=Plan.from_json(json.dumps(row["plan"])),
                    predicted=row["predicted"],
                    error=math.inf if row["error"] is None else float(row["error"]),
                    agreement=row["agreement"],
                )
                for row in data["rows"]
            )
            return cls(**{name: data[name] for name in ("model", "coarse", "samples", "tested", "measure")}, rows=rows)
        except (ValueError, KeyError, TypeError, PlanError) as error:
            raise CalibrationError(
                f"this is no trade-off: {shortened(str(error), 200)}; pass the text that Tradeoff.to_json() wrote"
            ) from error

    def __str__(self) -> str:
        title = f"{self.model}: speed-up against error, coarse {self.coarse!r}, fitted to "
        title += f"{quantity(self.samples, 'sample')}, errors on {self.tested} others"
        head = ["n", "windows", "speed-up", "error", "predicted", *([self.measure] if self.measure else [])]
        head += ["parallel blocks"]
        best = set(map(id, self.front))
        lines = [[*head, ""], *(self._line(row, id(row) in best) for row in self.rows)]
        last = ["* no other plan is both faster and nearer to the original"]
        if not any(row.windows for row in self.rows):
            why = [note for row in self.rows[:1] for note in row.plan.notes]
            last.append(": ".join(["no windows are faster than the original", *why]))
        return "\n".join([title, "", aligned(lines), "", *last])

    def _line(self, row: TradeoffRow, is_best: bool) -> list[str]:
        line = [str(row.n), str(row.windows), f"{row.speedup:.2f}×", f"{row.error:.3g}"]
        line.append("" if row.predicted is None else f"{row.predicted:.3g}")
        if self.measure:
            line.append("" if row.agreement is None else f"{row.agreement:.4g}")
        return [*line, shortened(parallel_blocks(row.plan), MOST_NAMES), "*" if is_best else ""]


def check_tolerance(tolerance: Any) -> None:
    """Raises a CalibrationError where it is no error of an output."""
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not tolerance >= 0:
        raise CalibrationError(f"tolerance is {tolerance!r}; pass the largest relative error of the output, from 0")


def parallel_blocks(plan: Plan) -> str:
    """The blocks that run side by side, window by window: ``h.2 | h.3, h.4 | h.5``."""
    windows: Sequence[str] = [
        " | ".join(
            segment.first_block if segment.blocks == 1 else f"{segment.first_block}–{segment.last_block}"
            for segment in window.segments
        )
        for window in plan.windows
        if not window.sequential
    ]
    return ", ".join(windows) or "none: the original"
