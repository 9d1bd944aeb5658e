"""A batch -> seconds of a step on 2 to 16 ranks by way, of parts that are measured here, one by one, on one thread.

Ranks beyond the machine's cores cannot be measured; these are simulated steps, each rank with a core of its own:

- pipeline: m microbatches of b/m samples on P equal stages take ``(m + P - 1)/P`` serial steps of a microbatch; the
  best m. No pipeline is faster, whatever its schedule.
- parareal: :func:`pararealize.simulate` of the plan for P segments with measured parts.
- multigrid: :func:`pararealize.multigrid.simulation.simulate_multigrid`, two levels, with measured layers.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.processes.networks import WIDTH, build, example
from pararealize import Transfer, layer_parallel, measure_network, pararealize, simulate
from pararealize.multigrid.simulation import simulate_multigrid
from pararealize.multigrid.times import measure_layers

__all__ = ["LINK", "RANKS", "steps"]

RANKS = (2, 4, 8, 16)
LINK = Transfer(latency=50e-6, bandwidth=2e9)  # between processes of one machine
ROUNDS = 5
MULTIGRID = {"multigrid 8 1/1": (1, 1), "multigrid 8 2/1": (2, 1)}  # forward and backward iterations


def steps(batch: int, network: str = "chain64") -> dict[str, Any]:
    """Seconds by way and number of ranks."""
    model = build(network).train()
    x, target = example(network, batch)
    serial = {m: _seconds(model, x[: batch // m], target[: batch // m]) for m in (1, 2, 4, 8, 16, 32) if batch % m == 0}
    seconds: dict[str, Any] = {
        "serial": {"1": serial[1]},
        "pipeline": {},
        "parareal linear": {},
        "parareal bottleneck": {},
    }
    for P in RANKS:
        seconds["pipeline"][str(P)] = min((m + P - 1) / P * step for m, step in serial.items())
        for kind in ("linear", "bottleneck"):
            net = pararealize(model, P, example_inputs=x, coarse=kind, cost="seconds")
            times, _ = measure_network(net.train(), x, repeats=ROUNDS)
            step = simulate(net.plan, times, latency=LINK.latency, bandwidth=LINK.bandwidth, batch=batch).step
            seconds[f"parareal {kind}"][str(P)] = step
    net = layer_parallel(model, 2, 8, example_inputs=x)
    layers = measure_layers(net, x, repeats=ROUNDS)
    size = 4 * batch * WIDTH * x.shape[-1] * x.shape[-2]  # bytes of one value between layers
    for way, (forward, backward) in MULTIGRID.items():
        settings = {"forward_iterations": forward, "backward_iterations": backward, "transfer": LINK, "size": size}
        seconds[way] = {str(P): simulate_multigrid(net.hierarchy, layers, P, **settings).step for P in RANKS}
    return {"batch": batch, "latency": LINK.latency, "bandwidth": LINK.bandwidth, "steps": seconds}


def _seconds(model: torch.nn.Module, x: torch.Tensor, target: torch.Tensor) -> float:
    """Of forward and backward."""
    times = []
    for i in range(-1, ROUNDS):
        began = time.perf_counter()
        cross_entropy(model(x), target).backward()
        if i >= 0:
            times.append(time.perf_counter() - began)
    return median(times)
