"""Strategy: one way of running a step on several devices, with what it takes; plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from pararealize.plan.plan import Plan

__all__ = ["Strategy"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way of running a step.

    Attributes:
        name: such as ``"data parallel"``.
        detail: with how many copies, stages, segments.
        devices: that it uses.
        exact: whether it computes what the network computes, to rounding.
        step: seconds.
        work: seconds of one device for the same batch, which ``speedup`` compares with.
        memory: bytes on the device that needs most.
        sent: bytes that a device sends in a step, at most.
        fits: whether that device has so much memory.
        n: segments of a window, stages or ranks along the depth; 1 where there is no such division.
        copies: that share the batch.
        plan: of a parareal network.
    """

    name: str
    detail: str
    devices: int
    exact: bool
    step: float
    work: float
    memory: float
    sent: float
    fits: bool
    n: int = 1
    copies: int = 1
    plan: Plan | None = None

    @property
    def speedup(self) -> float:
        """Over one device with the same batch."""
        return self.work / self.step if self.step else 1.0

    @property
    def utilisation(self) -> float:
        """The share of its devices' time that goes into the original's own work."""
        return self.speedup / self.devices

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; of the plan, what says how it is made."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "plan"}
        row |= {"speedup": self.speedup, "utilisation": self.utilisation, "plan": None}
        if self.plan is not None:
            names = [segment.first_block for segment in self.plan.segments]
            row["plan"] = {
                "n": self.plan.n,
                "windows": len(self.plan.windows),
                "coarse": self.plan.coarse,
                "source": self.plan.source,
                "segments_begin": names,
            }
        return row
