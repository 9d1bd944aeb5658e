"""Timelines, simulated ones and a recorded one: read, printed, traced and drawn."""

from __future__ import annotations

from pathlib import Path
from random import Random

from pararealize import simulate
from pararealize.plan.timeline import Timeline
from pararealize.plan.timeline_figure import draw_timeline
from pararealize.plan.trace import chrome_trace

from ..mutations import mutated_json
from ..trial import Trial
from .documents import reread
from .networks import planned

__all__ = ["Timelines"]

DRAWN = 5  # one timeline of so many is drawn


class Timelines:
    """Simulated steps of three plans, with and without sums of linear coarse blocks, and one recorded step."""

    def __init__(self) -> None:
        plans = [row.plan for row in planned(3)]
        simulated = [
            simulate(plan, latency=1e-9, bandwidth=1e15, reduce_linear=reduce)
            for plan in plans
            for reduce in (False, True)
        ]
        clock = simulated[0]
        words = {"stem": "stem", "C": "adapter", "g": "fine", "F": "coarse", "head": "head"}
        rows = [
            (a.rank, max(a.j, 1), words[a.name.rstrip("0123456789")], a.direction, a.start, a.end)
            for a in clock.actions
            if a.kind != "transfer"
        ]
        self.timelines = [*simulated, Timeline.recorded(rows, model="Sequential", n=clock.n)]

    def __call__(self, random: Random, folder: Path) -> Trial:
        content, change = mutated_json(random.choice(self.timelines).to_json().encode(), random)
        drawn, as_bytes = random.randrange(DRAWN) == 0, random.random() < 0.2

        def attempt() -> str:
            timeline, fault = reread(folder / "timeline.json", content, Timeline.from_json, as_bytes=as_bytes)
            if fault:
                return fault
            chrome_trace(timeline)
            if drawn:
                draw_timeline(timeline, folder / "timeline.svg")
            busy = [timeline.busy(rank) / (timeline.step or 1) for rank in range(timeline.ranks)]
            most = 1 + 1e-6 if timeline.origin == "simulated" else timeline.ranks * len(timeline.actions)
            late = [share for share in (timeline.efficiency, *busy) if not 0 <= share <= most]
            return f"a share of {late[0]} of the step" if late else ""

        return Trial(change=change, attempt=attempt)
