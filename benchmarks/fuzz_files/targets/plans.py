"""Plans: read, printed, simulated, drawn, and applied to the network that they were made for.

The oracle is the original: what the network is has to be what the plan says, and after n - 1 iterations its output is
the original's, whatever the adapters and coarse blocks are.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch

from pararealize import Plan, pararealize, simulate
from pararealize.coarse.kinds import KINDS
from pararealize.network.module import PararealModule
from pararealize.plan.figure import draw_plan
from pararealize.plan.timeline import Timeline
from pararealize.plan.trace import chrome_trace

from ..mutations import mutated_json
from ..trial import PRINTED, Trial, unreadable
from .documents import reread
from .networks import Planned, planned

__all__ = ["Plans", "wrong_network"]

DRAWN = 10  # one plan of so many is drawn, which takes longer than all the rest


class Plans:
    """Plans of ten networks."""

    def __init__(self) -> None:
        self.rows = planned()

    def __call__(self, random: Random, folder: Path) -> Trial:
        row = random.choice(self.rows)
        content, change = mutated_json(row.plan.to_json().encode(), random)
        drawn, as_bytes = random.randrange(DRAWN) == 0, random.random() < 0.2

        def attempt() -> str:
            plan, fault = reread(folder / "plan.json", content, Plan.from_json, as_bytes=as_bytes)
            if fault:
                return f"the plan: {fault}"
            timeline = simulate(plan)
            assert Timeline.from_json(timeline.to_json()) == timeline
            chrome_trace(timeline)
            if fault := unreadable(str(timeline), PRINTED):
                return f"the timeline: {fault}"
            if drawn:
                draw_plan(plan, folder / "plan.svg")
            return wrong_network(row, plan)

        return Trial(change=f"{row.name}: {change}", attempt=attempt)


def wrong_network(row: Planned, plan: Plan) -> str:
    """How the network that a plan leads to is not the one that it says, or does not lead to the original's output."""
    net = pararealize(row.model, plan=plan, example_inputs=row.x)
    if net.plan != plan:
        return "the network's plan is another"
    if faults := _parts(net, plan):
        return "; ".join(faults)
    with torch.no_grad():
        output, exact = net(row.x), net.iterate(row.x, plan.n - 1)
    if output.shape != row.output.shape:
        return f"the output is {tuple(output.shape)}, the original's {tuple(row.output.shape)}"
    if not torch.allclose(exact, row.output, rtol=1e-4, atol=1e-5):
        return f"after n - 1 iterations the output differs by {(exact - row.output).abs().max():.1e}"
    return ""


def _parts(net: PararealModule, plan: Plan) -> list[str]:
    """Numbers of parameters, recipes, kinds and units that are not as planned."""
    numbers: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith(("adapters.", "coarse.")) else "original"
        numbers[part] = numbers.get(part, 0) + parameter.numel()
    says = {"original": plan.parameters.original}
    says |= {f"adapters.C{row.j}": row.parameters for row in plan.adapters}
    says |= {f"coarse.F{row.j}": row.parameters for row in plan.coarse_blocks}
    faults = [
        f"{part} has {numbers.get(part, 0)} parameters, the plan says {number}"
        for part, number in says.items()
        if numbers.get(part, 0) != number
    ]
    modules = dict(net.named_modules())
    for row in plan.adapters:
        recipe = getattr(modules[f"adapters.C{row.j}"], "recipe", "")
        if recipe != row.recipe:
            faults.append(f"C{row.j} is {recipe!r}, the plan says {row.recipe!r}")
    for spec in plan.coarse_blocks:
        block = modules.get(f"coarse.F{spec.j}")
        if (block is None) != (spec.kind == "exact") or spec.kind not in KINDS:
            faults.append(f"F{spec.j} is {type(block).__name__}, the plan says {spec.kind!r}")
        units = sum(name.startswith("unit") for name, _ in block.named_children()) if block is not None else 0
        if spec.kind in ("paper", "depthwise") and units != max(spec.units, units > 0):
            faults.append(f"F{spec.j} has {units} units, the plan says {spec.units}")
    return faults
