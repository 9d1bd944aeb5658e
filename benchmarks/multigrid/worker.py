"""One rank of the experiment: ways to take a training step, made once and timed in turn, round after round.

All ranks wait for each other before a measurement; its time is that of the rank that is done last.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.ranks import Case, Measurement
from pararealize import layer_parallel

from .known import KnownNet, known_batch

__all__ = ["SERIAL", "WAYS", "measure"]

SERIAL = {"one thread": 1, "two threads": 2}
WAYS = {"c4 2/1": (4, 2, 1), "c8 2/1": (8, 2, 1), "c4 1/1": (4, 1, 1), "c8 1/1": (8, 1, 1)}
WARM = 2


def measure(case: Case) -> Iterator[Measurement]:
    """Measure one depth, on this rank."""
    return _measure(case["steps"], case["rounds"], case["ways"])


def _measure(steps: int, rounds: int, names: list[str]) -> Iterator[Measurement]:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("parareal",))
    x, labels = known_batch()
    model = KnownNet(steps)
    exact = _gradients(model, lambda: F.cross_entropy(model(x), labels).backward())
    ways: dict[str, tuple[nn.Module, Callable[[], Any], int]] = {}
    for name in names:
        if name in SERIAL:
            net = copy.deepcopy(model)
            ways[name] = net, lambda net=net: F.cross_entropy(net(x), labels).backward(), SERIAL[name]
        else:
            c, k, b = WAYS[name]
            stage = layer_parallel(model, 2, c, k, b, example_inputs=x[:2], mesh=mesh)
            step = lambda stage=stage: stage.step(x, target=labels, loss_fn=F.cross_entropy)  # noqa: E731
            ways[name] = stage, step, 0
            yield name, "gradient error", _error(_gradients(stage, step), exact)
            yield from ((name, f"residual {i}", value) for i, value in enumerate(stage.history[-1].forward))
    for i in range(-WARM, rounds):
        for name, (module, step, threads) in ways.items():
            module.zero_grad()
            seconds, busy = _timed(step, threads)
            if i >= 0:
                yield name, "step", seconds
                yield name, "processor", busy


def _gradients(module: nn.Module, step: Callable[[], Any]) -> dict[str, torch.Tensor]:
    module.zero_grad()
    step()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def _error(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Of the steps' gradients on all ranks together, relative."""
    inner = [name for name in exact if name.startswith("steps")]
    squares = ((ours[name] - exact[name]).double().square().sum() for name in inner if name in ours)
    wrong = sum(squares, start=torch.zeros((), dtype=torch.float64))
    distributed.all_reduce(wrong)
    return float((wrong / sum(exact[name].double().square().sum() for name in inner)).sqrt())


def _timed(work: Callable[[], Any], threads: int) -> tuple[float, float]:
    """Seconds until the last rank is done, and processor seconds of the busiest rank.

    Of serial ways, which have threads, the first rank alone works.
    """
    gc.collect()
    gc.disable()
    distributed.barrier()
    torch.set_num_threads(threads or 1)
    began, busy = time.perf_counter(), time.process_time()
    if not threads or distributed.get_rank() == 0:
        work()
    times = torch.tensor([time.perf_counter() - began, time.process_time() - busy], dtype=torch.float64)
    torch.set_num_threads(1)
    gc.enable()
    distributed.all_reduce(times, distributed.ReduceOp.MAX)
    return float(times[0]), float(times[1])
