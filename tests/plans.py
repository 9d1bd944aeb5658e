"""Plans made by hand, of any number of segments, without a network."""

from __future__ import annotations

import dataclasses

from pararealize.analysis.space import Space
from pararealize.coarse.spec import AdapterPlan, CoarsePlan
from pararealize.plan.plan import PartPlan, Plan, SegmentPlan

__all__ = ["BYTES", "coarse_row", "plan_of", "windows_plan"]

BYTES = 4 * 2  # of one float32 value of each of two samples


def plan_of(stages: list[int], *, kind: str = "paper", source: str = "input") -> Plan:
    """A plan of segments in stages: interface spaces have as many channels as the stage's number, from 1."""
    spaces = [Space(shape=(stage,), channel=0) for stage, count in enumerate(stages, 1) for _ in range(count)]
    n = len(spaces)
    nothing = {"parameters": 0, "flops_forward": 0, "flops_backward": 0, "cost_forward": 1, "cost_backward": 2}
    into = [spaces[0], *spaces]
    return Plan(
        model="Made",
        fingerprint="",
        n=n,
        coarse=kind,
        cuts="cost",
        source=source,
        batch=2,
        unit="flops",
        stem=PartPlan(**nothing),
        head=PartPlan(**nothing),
        segments=tuple(
            SegmentPlan(
                j=j, first=j - 1, last=j - 1, first_block="", last_block="", blocks=1, x=into[j - 1], y=into[j],
                device="", **nothing,
            )
            for j in range(1, n + 1)
        ),
        adapters=tuple(
            AdapterPlan(j=j, source=source, x=into[0], y=into[j - 1], recipe="", **nothing) for j in range(2, n + 1)
        ),
        coarse_blocks=tuple(
            CoarsePlan(j=j, kind=kind, units=0, kernel=0, x=into[j], y=into[j + 1], note="", **nothing)
            for j in range(1, n)
        ),
    )  # fmt: skip


def windows_plan(lengths: list[int], *, kind: str = "linear", source: str = "stem") -> Plan:
    """A plan of windows of so many segments each, in one space; adapters of later windows are identities."""
    space = Space(shape=(1,), channel=0)
    nothing = {"parameters": 0, "flops_forward": 0, "flops_backward": 0, "cost_forward": 1, "cost_backward": 2}
    rows = [(m * (len(lengths) > 1), j) for m, length in enumerate(lengths, 1) for j in range(1, length + 1)]
    last = dict(rows)
    return dataclasses.replace(
        plan_of([1], kind=kind, source=source),
        n=max(lengths),
        segments=tuple(
            SegmentPlan(
                m=m, j=j, first=i, last=i, first_block="", last_block="", blocks=1, x=space, y=space, device="",
                **nothing,
            )
            for i, (m, j) in enumerate(rows)
        ),
        adapters=tuple(
            AdapterPlan(
                m=m, j=j, source="window" if m > 1 else source, x=space, y=space, recipe="identity", **nothing
            )
            for m, j in rows
            if j > 1
        ),
        coarse_blocks=tuple(
            CoarsePlan(m=m, j=j, kind=kind, units=0, kernel=0, x=space, y=space, note="", **nothing)
            for m, j in rows
            if j < last[m]
        ),
    )  # fmt: skip


def coarse_row(kind: str, x: Space, y: Space, *, count: int = 1, kernel: int = 7, j: int = 1) -> CoarsePlan:
    """The row of one coarse block, with what it is built from and no cost."""
    nothing = {"parameters": 0, "flops_forward": 0, "flops_backward": 0, "cost_forward": 0, "cost_backward": 0}
    return CoarsePlan(j=j, kind=kind, units=count, kernel=kernel, x=x, y=y, note="", **nothing)
