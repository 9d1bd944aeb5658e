"""What is compared: ways to take one training step, or to answer one request, on two processes of one machine.

A method is made once on every rank; ``step`` and ``infer`` return when this rank has done its part. Parameters get
their gradients as ``.grad``; the update is a method's own optimiser's, and is timed apart.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from pararealize import PararealModule, layer_parallel

__all__ = ["METHODS", "MULTIGRID", "Method", "Setting"]


class Method:
    """One way: its module on this rank, and what it does with a batch."""

    threads = 1
    needs_both = True  # ranks; otherwise the first works alone

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.optimiser = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)

    def fits(self, batch: int) -> bool:
        return batch >= 1

    def step(self, x: Tensor, target: Tensor) -> None:
        F.cross_entropy(self.module(x), target).backward()

    def infer(self, x: Tensor) -> None:
        self.module(x)

    @contextlib.contextmanager
    def with_threads(self) -> Iterator[None]:
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(1)


class Original(Method):
    """The network in one process with one thread, or with as many as there are cores."""

    needs_both = False

    def __init__(self, module: nn.Module, threads: int) -> None:
        super().__init__(module)
        self.threads = threads


class Replicas(Method):
    """torch's DistributedDataParallel: each rank takes half of the batch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(nn.parallel.DistributedDataParallel(module))

    def fits(self, batch: int) -> bool:
        return batch >= 2

    def step(self, x: Tensor, target: Tensor) -> None:
        ours = slice(distributed.get_rank(), None, distributed.get_world_size())
        super().step(x[ours], target[ours])

    def infer(self, x: Tensor) -> None:
        self.module(x[distributed.get_rank() :: distributed.get_world_size()])


class Pipeline(Method):
    """torch.distributed.pipelining: the network in two halves, the batch in microbatches."""

    def __init__(self, half: nn.Module, schedule: type, microbatches: int) -> None:
        super().__init__(half)
        self.schedule, self.microbatches = schedule, microbatches
        self._schedules: dict[int, Any] = {}

    def fits(self, batch: int) -> bool:
        least = 2 if self.schedule is Schedule1F1B else 1  # 1F1B wants as many microbatches as there are ranks
        return batch % self.microbatches == 0 and batch >= self.microbatches >= least

    def step(self, x: Tensor, target: Tensor) -> None:
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
        if len(x) not in self._schedules:
            stage = PipelineStage(self.module, rank, ranks, torch.device("cpu"))
            self._schedules[len(x)] = self.schedule(stage, self.microbatches, loss_fn=F.cross_entropy)
        if rank == 0:
            self._schedules[len(x)].step(x)
        else:
            self._schedules[len(x)].step(target=target, losses=[])


class Stages(Method):
    """The converted network, one segment a rank; or multigrid in depth, an equal share of the layers on each."""

    def step(self, x: Tensor, target: Tensor) -> None:
        self.module.step(x, target=target, loss_fn=F.cross_entropy)


class _Contiguous(nn.Module):
    """torch's pipelines receive a gradient in the strides of what was sent, and gloo wants them contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What methods are made of on this rank: network, example, its conversions by coarse kind, ranks, cores."""

    model: nn.Module
    example: Tensor
    nets: dict[str, PararealModule]
    mesh: DeviceMesh
    cores: int

    def copied(self) -> nn.Module:
        return copy.deepcopy(self.model)

    def half(self) -> nn.Sequential:
        """This rank's half of the original, cut where the parareal network is: by measured seconds."""
        net = self.nets["linear"]
        if distributed.get_rank() == 0:
            parts: list[nn.Module] = [net.stem, net.segments["g1"], _Contiguous()]
        else:
            parts = [net.segments["g2"], net.head]
        return nn.Sequential(*(copy.deepcopy(part) for part in parts))


def _pipeline(schedule: type, microbatches: int) -> Callable[[Setting], Method]:
    return lambda setting: Pipeline(setting.half(), schedule, microbatches)


def _parareal(kind: str) -> Callable[[Setting], Method]:
    return lambda setting: Stages(setting.nets[kind].distribute(setting.mesh))


def _multigrid(coarsening: int, forward: int, backward: int) -> Callable[[Setting], Method]:
    return lambda setting: Stages(
        layer_parallel(
            setting.model, 2, coarsening, forward, backward, example_inputs=setting.example, mesh=setting.mesh
        )
    )


METHODS: dict[str, Callable[[Setting], Method]] = {
    "one thread": lambda setting: Original(setting.copied(), 1),
    "all threads": lambda setting: Original(setting.copied(), setting.cores),
    "DDP": lambda setting: Replicas(setting.copied()),
    **{f"GPipe {m}": _pipeline(ScheduleGPipe, m) for m in (1, 2, 4, 8)},
    **{f"1F1B {m}": _pipeline(Schedule1F1B, m) for m in (2, 4, 8)},
    **{f"parareal {kind}": _parareal(kind) for kind in ("linear", "depthwise", "bottleneck", "paper")},
    **{f"multigrid {c} {k}/{b}": _multigrid(c, k, b) for c in (4, 8) for k, b in ((1, 1), (2, 1))},
}
MULTIGRID = tuple(name for name in METHODS if name.startswith("multigrid"))  # asked for by name
