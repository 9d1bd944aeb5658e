"""A batch size and a number of segments -> milliseconds of a step by each way to run it, on this machine's GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize import pararealize
from pararealize.errors import PlanError
from pararealize.models import resnet1001
from pararealize.network.local.module import capture_graphs, run_local

__all__ = ["ORIGINAL", "PARAREAL", "measure"]

ORIGINAL = ("original", "original compiled", "original captured")
PARAREAL = ("eager", "streams", "stacked", "captured parts", "captured whole", "captured whole, stacked")
CLASSES = 10
WARM_UP = 3

Step = Callable[[Tensor], Tensor]


def measure(batch: int, n: int | None, *, coarse: str, rounds: int, steps: int) -> dict[str, Any]:
    """Medians of turns about: of the original's ways alone (n is None), or of a network's with the original's beside.

    A step is forward, cross entropy and backward, without an optimiser, in float32 as torch sets it. What the GPU's
    memory does not hold, or cannot be stacked, has an error for its row.
    """
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, device="cuda")
    labels = torch.randint(0, CLASSES, (batch,), device="cuda")
    model = resnet1001().cuda()
    ways: dict[str, Callable[[], Step]] = {
        "original": lambda: model,
        "original captured": lambda: torch.cuda.make_graphed_callables(copy.deepcopy(model), (x,)),
    }
    if n is None:
        ways["original compiled"] = lambda: torch.compile(copy.deepcopy(model))
    else:
        ways |= _parareal(model, x, n, coarse)
    steps_of: dict[str, Step] = {}
    rows: dict[str, Any] = {}
    for name, make in ways.items():
        try:
            steps_of[name] = run = make()
            for _ in range(WARM_UP):
                _step(run, x, labels)
        except (torch.cuda.OutOfMemoryError, PlanError) as error:
            steps_of.pop(name, None)
            rows[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in steps_of}
    for _ in range(rounds):
        for name, run in steps_of.items():
            times[name].append(_milliseconds(run, x, labels, steps))
    for name, values in times.items():
        rows[name] = {"ms": median(values), "least": min(values), "most": max(values)}
    return {"batch": batch, "n": n, "coarse": coarse, "gpu": torch.cuda.get_device_name(), "ways": rows}


def _parareal(model: nn.Module, x: Tensor, n: int, coarse: str) -> dict[str, Callable[[], Step]]:
    """Every way to run one conversion; with the paper's cuts, so that segments are alike and can be stacked."""
    net = pararealize(model, n, example_inputs=x, coarse=coarse, cuts="paper")
    return {
        "eager": lambda: net,
        "streams": lambda: run_local(net),
        "stacked": lambda: run_local(net, stack=True),
        "captured parts": lambda: capture_graphs(net, x, graphs="parts"),
        "captured whole": lambda: capture_graphs(net, x, graphs="whole"),
        "captured whole, stacked": lambda: capture_graphs(net, x, graphs="whole", stack=True),
    }


def _step(run: Any, x: Tensor, labels: Tensor) -> None:
    run.zero_grad()
    functional.cross_entropy(run(x), labels).backward()


def _milliseconds(run: Step, x: Tensor, labels: Tensor, steps: int) -> float:
    """Of one step, by the GPU's clock, the time to issue it included."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(steps):
        _step(run, x, labels)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / steps
