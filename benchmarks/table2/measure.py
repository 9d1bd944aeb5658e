"""One case -> its row: a network cut one way, every part measured by itself beside the original.

A case is ``N-recipe``: ``12-paper's recipe`` has the paper's cuts and coarse units and waits for all segments,
``12-linear`` the best cuts by measured seconds and coarse blocks of that kind; ``12-linear, summed`` those for linear
coarse blocks that are added up in pairs.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pararealize import Plan, Times

__all__ = ["KINDS", "PAPER", "PUBLISHED", "SUMMED", "case", "measure", "original", "parts", "recipe_of"]

PAPER = "paper's recipe"
SUMMED = "linear, summed"
KINDS = ("paper", "depthwise", "linear", SUMMED, "block")


def _row(stem: Any, slowest: Any, coarse: Any, head: Any, speedup: float) -> dict[str, Any]:
    return {"stem": stem, "slowest": slowest, "coarse": coarse, "head": head, "speedup": speedup}


# Lee, Lee and Park, table 2: milliseconds forward / backward, batch 128, one Titan RTX
# fmt: off
PUBLISHED: dict[int, dict[str, Any]] = {
    1: _row((0.25, 6.46), (443.81, 1387.62), None, (0.06, 3.18), 1.0),
    3: _row((0.25, 6.45), (131.92, 458.87), (10.01, 97.60), (0.06, 3.71), 2.60),
    6: _row((0.27, 6.42), (67.59, 219.72), (14.68, 137.08), (0.06, 3.33), 4.10),
    12: _row((0.28, 6.59), (48.47, 113.33), (17.97, 149.52), (0.06, 3.63), 5.42),
    18: _row((0.29, 6.17), (30.40, 77.84), (27.87, 163.25), (0.06, 3.64), 5.95),
    24: _row((0.29, 6.58), (22.71, 58.04), (41.03, 242.87), (0.06, 3.54), 4.91),
}
# fmt: on


def case(n: int, recipe: str) -> str:
    return f"{n}-{recipe}"


def recipe_of(name: str) -> tuple[int, str]:
    n, _, recipe = name.partition("-")
    return int(n), recipe


def measure(name: str, *, model: str, batch: int, repeats: int, warmup: int) -> dict[str, Any]:
    """Medians of forward and backward seconds of stem, adapters, segments, coarse blocks, head, and the original."""
    import torch

    from pararealize import Transfer, measure_network, models, pararealize

    n, recipe = recipe_of(name)
    torch.manual_seed(0)
    network = models.build(model, num_classes=100)
    x = torch.randn(batch, 3, 32, 32)
    if recipe == PAPER:
        net = pararealize(network, n, example_inputs=x, coarse="paper", cuts="paper")
    elif recipe == SUMMED:
        free = Transfer(latency=0.0, bandwidth=math.inf)
        net = pararealize(network, n, example_inputs=x, coarse="linear", cuts="cost", cost="seconds", transfer=free)
    else:
        net = pararealize(network, n, example_inputs=x, coarse=recipe, cuts="cost", cost="seconds")
    times, beside = measure_network(net, x, repeats=repeats, warmup=warmup, beside={"original": (network, x)})
    return {
        "n": n,
        "recipe": recipe,
        "starts": [segment.first for segment in net.plan.segments],
        "identities": [row.kind == "linear" and row.x == row.y for row in net.plan.coarse_blocks],
        "predicted": net.plan.virtual_speedup,
        "original": beside["original"],
        "times": dataclasses.asdict(times),
        "steps": _steps(net.plan, times, reduced=recipe == SUMMED),
    }


def _steps(plan: Plan, times: Times, *, reduced: bool) -> dict[str, tuple[float, float]]:
    """Forward and backward seconds of a step with a device a segment and free messages, by how it is scheduled."""
    from pararealize import simulate

    ways: dict[str, dict[str, Any]] = {"waiting": {"overlap": False}, "overlapped": {}}
    if reduced:
        ways["reduced"] = {"reduce_linear": True}
    steps = {}
    for name, how in ways.items():
        forward = simulate(plan, times, training=False, **how).step
        steps[name] = (forward, simulate(plan, times, **how).step - forward)
    return steps


def parts(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Stem, slowest segment with its adapter, whole coarse chain and head, forward and backward."""
    times = row["times"]
    adapters = [(0.0, 0.0), *times["adapters"]]
    whole = [tuple(map(sum, zip(a, s, strict=True))) for a, s in zip(adapters, times["segments"], strict=True)]
    chain = times["coarse"] or [(0.0, 0.0)]
    return {
        "stem": tuple(times["stem"]),
        "slowest": (max(s[0] for s in whole), max(s[1] for s in whole)),
        "coarse": (sum(c[0] for c in chain), sum(c[1] for c in chain)),
        "head": tuple(times["head"]),
    }


def original(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """The median of the original's medians over all cases."""
    return median(row["original"][0] for row in rows), median(row["original"][1] for row in rows)
