"""One conversion in a process of its own -> seconds by stage, and the memory that it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import pararealize.compiler
from pararealize import pararealize as convert

from .networks import build

__all__ = ["STAGES", "measure"]

# the functions that pararealize() calls, by stage
STAGES = {
    "capture": ("capture",),
    "blocks": ("find_blocks",),
    "fields and costs": ("receptive_fields", "count_costs"),
    "plan": ("plan_segments",),
    "build and emit": ("build_planned_adapter", "build_coarse", "emit"),
}


def measure(name: str, n: int) -> dict[str, Any]:
    """Convert a network once, after another one has paid for imports and caches."""
    torch.set_num_threads(1)
    convert(*_small(), example_inputs=torch.randn(2, 3, 8, 8))
    model, example = build(name)
    seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    before = _memory("VmRSS")
    with contextlib.ExitStack() as stack:
        for stage, functions in STAGES.items():
            for function in functions:
                timed = _timed(getattr(pararealize.compiler, function), seconds, stage)
                stack.enter_context(mock.patch.object(pararealize.compiler, function, timed))
        _reset_peak()
        cpu, wall = time.process_time(), time.perf_counter()
        net = convert(model, n, example_inputs=example)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "cpu": cpu,
        "wall": wall,
        "stages": {**seconds, "rest": cpu - sum(seconds.values())},
        "peak_mib": (_memory("VmHWM") - before) / 1024,
        "model_mib": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
        "blocks": sum(segment.blocks for segment in net.plan.segments),
        "n": n,
    }


def _small() -> tuple[torch.nn.Module, int]:
    return build("chain-10")[0], 3


def _timed(function: Callable[..., Any], seconds: dict[str, float], stage: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[stage] += time.process_time() - began

    return run


def _memory(field: str) -> float:
    """KiB that the process holds now (VmRSS), or at most since the last reset (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
