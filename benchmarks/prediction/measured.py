"""Two ranks: a network's step on one, with copies, and in two segments, beside what its measured blocks predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from benchmarks.ranks import Case, Measurement
from pararealize import Plan, capture, find_blocks, models, pararealize, receptive_fields
from pararealize.profiles import device_profile, measure_link
from pararealize.strategies.measured_blocks import MeasuredBlocks
from pararealize.strategies.network_costs import NetworkCosts
from pararealize.strategies.parareal import PararealPlans
from pararealize.strategies.replicas import data_parallel, one_device

__all__ = ["NETWORKS", "measure"]

ROUNDS = 5


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def _mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(64, 256), *(Residual(256) for _ in range(16)), nn.Linear(256, 10)), (64,)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "resnet56": lambda: (models.build("resnet56"), (3, 32, 32)),
    "mlp16": _mlp,
}


def measure(case: Case) -> Iterator[Measurement]:
    """One network at one batch: predictions of rank 0, and medians of both ranks' steps."""
    torch.manual_seed(0)
    model, shape = NETWORKS[case["network"]]()
    batch, rank = case["batch"], distributed.get_rank()
    x = torch.randn(batch, *shape)
    target = torch.randint(10, (batch,))
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("parareal",))
    link = measure_link(name="gloo")
    plans: list[Any] = [None]
    if rank == 0:
        sizes = sorted({max(1, batch // 2), batch})
        chains = tuple(find_blocks(capture(model, torch.randn(size, *shape))) for size in sizes)
        pricing = MeasuredBlocks(chains)
        chain = chains[-1]
        costs = NetworkCosts(chain, receptive_fields(chain), pricing, device_profile("cpu"), link)
        row = PararealPlans(costs).strategy(2, 1, batch, "linear")
        assert row is not None
        assert row.plan is not None
        plans = [row.plan.to_json()]
        yield "one", "predicted", one_device(costs, batch).step
        yield "parareal", "predicted", row.step
        copies = data_parallel(costs, 2, batch)
        if copies is not None:
            yield "copies", "predicted", copies.step
    distributed.broadcast_object_list(plans)
    net = pararealize(model, example_inputs=x, plan=Plan.from_json(plans[0]))
    stage = net.distribute(mesh)
    ways: dict[str, Callable[[], Any]] = {"one": lambda: _step(model, x, target) if rank == 0 else None}
    ways["parareal"] = lambda: stage.step(x, target=target, loss_fn=nn.functional.cross_entropy)
    if batch > 1:
        half = batch // 2
        copy = DistributedDataParallel(NETWORKS[case["network"]]()[0])
        here = slice(rank * half, (rank + 1) * half)
        ways["copies"] = lambda: _step(copy, x[here], target[here])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(-2, ROUNDS):
        for name, way in ways.items():
            distributed.barrier()
            began = time.perf_counter()
            way()
            taken = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
            distributed.all_reduce(taken, distributed.ReduceOp.MAX)
            if i >= 0:
                seconds[name].append(float(taken))
    for name, values in seconds.items():
        yield name, "measured", median(values)
        yield name, "least", min(values)
    stage.close()


def _step(module: nn.Module, x: torch.Tensor, target: torch.Tensor) -> None:
    module.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(module(x), target).backward()
