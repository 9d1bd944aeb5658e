"""One rank of the experiment: methods made once, then timed in turn, round after round.

All ranks wait for each other before a measurement; its time is that of the rank that is done last.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.memory.measure import Kept
from benchmarks.ranks import Case, Measurement
from pararealize import Transfer, measure_network, pararealize, simulate

from .methods import METHODS, Method, Setting
from .networks import build, example

__all__ = ["measure"]

WARM = 2


def measure(case: Case) -> Iterator[Measurement]:
    """Measure one network at one batch, on this rank."""
    return _measure(case["network"], case["batch"], case["rounds"], case["methods"], case["cores"])


def _measure(network: str, batch: int, rounds: int, names: Sequence[str], cores: int) -> Iterator[Measurement]:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("parareal",))
    model = build(network)
    x, target = example(network, batch)
    link = _messages()
    kinds = dict.fromkeys(["linear", *(name.split()[1] for name in names if name.startswith("parareal"))])
    setting = Setting(model=model, example=x, nets=_convert(model, x, link, kinds), mesh=mesh, cores=cores)
    methods = {name: METHODS[name](setting) for name in names}
    methods = {name: method for name, method in methods.items() if method.fits(batch)}
    predicted = {kind: net for kind, net in setting.nets.items() if f"parareal {kind}" in names}
    for i in range(-WARM, rounds):
        for name, method in methods.items():
            for quantity, seconds in _once(method, x, target):
                if i >= 0:
                    yield name, quantity, seconds
    if batch == 1:
        yield from _latencies(methods, x, rounds)
    for name, method in methods.items():
        yield name, "memory", _memory(method, x, target)
    methods.clear()  # and their memory: the parts of every network come on top of it
    gc.collect()
    for kind, net in predicted.items():
        times, _ = measure_network(net.train(), x, repeats=rounds)  # on all ranks at once, as in a step
        timeline = simulate(net.plan, times, latency=link.latency, bandwidth=link.bandwidth, batch=batch)
        yield f"parareal {kind}", "predicted", timeline.step


def _convert(model: torch.nn.Module, x: torch.Tensor, link: Transfer, kinds: Iterable[str]) -> dict[str, Any]:
    """Converted networks by kind of coarse block, cut by seconds that the first rank has measured on this batch."""
    kinds = list(kinds)
    plans: list[Any] = [None] * len(kinds)
    if distributed.get_rank() == 0:
        ranks = distributed.get_world_size()
        nets = [
            pararealize(model, ranks, example_inputs=x, coarse=kind, cost="seconds", transfer=link) for kind in kinds
        ]
        plans = [net.plan for net in nets]
    distributed.broadcast_object_list(plans)
    return {
        kind: pararealize(model, example_inputs=x, coarse=kind, plan=plan)
        for kind, plan in zip(kinds, plans, strict=True)
    }


def _messages(rounds: int = 20) -> Transfer:
    """Seconds of a small message between the first two ranks, and bytes a second of a large one: the same on all."""
    seconds = []
    for elements in (1, 2**20):
        tensor, times = torch.zeros(elements), []
        for _ in range(rounds):
            distributed.barrier()
            began = time.perf_counter()
            for sender in (0, 1):
                if distributed.get_rank() == sender:
                    distributed.send(tensor, 1 - sender)
                else:
                    distributed.recv(tensor, sender)
            times.append((time.perf_counter() - began) / 2)
        seconds.append(median(times))
    transfer = [Transfer(seconds[0], 4 * 2**20 / max(seconds[1] - seconds[0], 1e-9))]
    distributed.broadcast_object_list(transfer)
    return transfer[0]


def _once(method: Method, x: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[str, float]]:
    """A step of forward and backward, and then its update."""
    method.module.train()
    method.optimiser.zero_grad(set_to_none=True)
    yield "step", _timed(method, lambda: method.step(x, target))
    yield "update", _timed(method, method.optimiser.step)


def _memory(method: Method, x: torch.Tensor, target: torch.Tensor) -> float:
    """Bytes of weights, gradients, momentum and what backward needs, on the rank that holds most."""
    most = torch.zeros((), dtype=torch.float64)
    distributed.barrier()
    if method.needs_both or distributed.get_rank() == 0:
        method.optimiser.zero_grad(set_to_none=True)
        with Kept(method.module) as kept:
            method.step(x, target)
        weights = sum(p.numel() * p.element_size() for p in method.module.parameters())
        most += 3 * weights + sum(b.numel() * b.element_size() for b in method.module.buffers()) + kept.bytes
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return float(most)


def _latencies(methods: dict[str, Method], x: torch.Tensor, rounds: int) -> Iterator[Measurement]:
    """Answers to one request; pipelines answer as the network on one rank does, with a message more."""
    answering = {name: method for name, method in methods.items() if not hasattr(method, "schedule")}
    for method in answering.values():
        method.module.eval()
    for i in range(-WARM, rounds):
        for name, method in answering.items():
            with torch.no_grad():
                seconds = _timed(method, lambda method=method: method.infer(x))
            if i >= 0:
                yield name, "latency", seconds


def _timed(method: Method, work: Callable[[], None]) -> float:
    """Seconds until the last rank is done; the ranks that a method does not need only wait."""
    gc.collect()
    gc.disable()
    distributed.barrier()
    began = time.perf_counter()
    if method.needs_both or distributed.get_rank() == 0:
        with method.with_threads():
            work()
    seconds = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
    gc.enable()
    distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
    return float(seconds)
