"""The ranks of a process group, their link -> the same link with what steps take on the ranks' hosts, measured.

A network so small that computing it takes next to nothing is run in every way; what its steps take longer than is
predicted of its measured blocks and the link is what hosts do besides, and is the same for any network.

    parareal, 4 windows and 1    more messages follow one another        HostCosts.message
    parareal, 1 window           what else is longer                     HostCosts.step
    GPipe                        m microbatches, p stages: m + p - 1     HostCosts.microbatch
    copies, of two depths        DistributedDataParallel                 HostCosts.copies, HostCosts.parameter
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.fields.field import receptive_fields
from pararealize.compiler import pararealize
from pararealize.errors import DistributedError
from pararealize.plan.plan import Plan
from pararealize.plan.simulation import simulate
from pararealize.plan.times import Times
from pararealize.profiles.device import DeviceProfile, HostCosts, Link
from pararealize.random_state import preserve_torch_state, seeded_weights
from pararealize.tracing.front_end import capture

from .measured_blocks import MeasuredBlocks
from .network_costs import NetworkCosts, all_reduce
from .parareal import PararealPlans
from .pipeline import stages_of

__all__ = ["measure_ranks"]

WINDOWS, MICROBATCHES = 4, 4
DEEPER = 4  # times as many blocks, to tell what copies take for each parameter
WIDTH, SAMPLES = 16, 8  # of the network, and of each rank's share of the batch
ROUNDS, STEPS = 5, 20  # of every way; steps in a row


def measure_ranks(link: Link, profile: DeviceProfile) -> Link:
    """Measure what steps of the default process group's ranks take on their hosts; every rank calls it.

    It is meant for ranks that compute on CPUs: on GPUs all of this is queued ahead of the device.

    Args:
        link: between the ranks, as :func:`~pararealize.profiles.measure_link` gives it.
        profile: of their device, as :func:`~pararealize.profiles.measure_device` gives it.

    Returns:
        The link, the same on all ranks, with :class:`~pararealize.profiles.HostCosts`.

    Raises:
        DistributedError: there is no process group, or one rank alone.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
        raise DistributedError(
            "hosts are measured by steps of two ranks or more, and there are no two; start with torchrun "
            "--nproc-per-node 2 --no-python pararealize profile"
        )
    with preserve_torch_state([torch.device("cpu")]), torch.inference_mode(False), torch.enable_grad():
        agreed: list[Any] = [_host_costs(dataclasses.replace(link, host=HostCosts()), profile)]
    dist.broadcast_object_list(agreed)  # each rank has measured other seconds of its blocks
    return dataclasses.replace(link, host=agreed[0])


def _host_costs(link: Link, profile: DeviceProfile) -> HostCosts:
    p = dist.get_world_size()
    batch = p * SAMPLES
    x, target = torch.ones(batch, WIDTH), torch.zeros(batch, dtype=torch.long)
    chain = find_blocks(capture(_network(WINDOWS * p), x))
    costs = NetworkCosts(chain, receptive_fields(chain), MeasuredBlocks(chain, (SAMPLES // 4, batch)), profile, link)
    costs.costs(batch)
    short, long = (_plan(costs, p, batch, windows) for windows in (1, WINDOWS))
    measured = {
        "short": _steady(_parareal(short, x, target)),
        "long": _steady(_parareal(long, x, target)),
        "pipeline": _steady(_pipeline(chain, p, x, target)),
    }
    messages = (_messages(long) - _messages(short)) or 1
    message = max((measured["long"] - measured["short"]) / messages - link.latency, 0.0)
    whole = link.latency + message
    staged = stages_of(costs, p, batch // MICROBATCHES)
    assert staged is not None
    few, many = (_averaging(p, WINDOWS * p * times, link, x[:SAMPLES], target[:SAMPLES]) for times in (1, DEEPER))
    parameter = max(many - few, 0.0) / (2 * (DEEPER - 1) * WINDOWS * p)  # a block has two
    return HostCosts(
        message=message,
        step=max(measured["short"] - simulate(short, latency=whole).step, 0.0),
        microbatch=max(measured["pipeline"] - staged[1].gpipe(MICROBATCHES), 0.0) / (MICROBATCHES + p - 1),
        copies=max(few - 2 * WINDOWS * p * parameter, 0.0),
        parameter=parameter,
    )


def _averaging(p: int, blocks: int, link: Link, x: torch.Tensor, target: torch.Tensor) -> float:
    """Seconds by which a step of copies is longer than one of the network alone, the sum of its gradients left out."""
    alone, averaged = (_steady(_copies(blocks, x, target, average=average)) for average in (False, True))
    size = sum(4 * parameter.numel() for parameter in _network(blocks).parameters())
    return max(averaged - alone - all_reduce(link, size, p), 0.0)


def _network(blocks: int) -> nn.Module:
    """So many blocks of next to nothing."""
    with seeded_weights(0, "network of next to nothing"):  # all ranks have one
        return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(blocks)))


def _plan(costs: NetworkCosts, p: int, batch: int, windows: int) -> Plan:
    """The first rank's plan, on all ranks: each has measured other seconds."""
    plan = PararealPlans(costs).plan(p, batch, "linear", windows)
    assert plan is not None
    shared: list[Any] = [plan.to_json()]
    dist.broadcast_object_list(shared)
    return Plan.from_json(shared[0])


def _messages(plan: Plan) -> float:
    """How many messages follow one another in a step."""
    nothing = 0.0, 0.0
    counts = len(plan.segments), len(plan.adapters)
    free = Times(
        stem=nothing,
        segments=(nothing,) * counts[0],
        adapters=(nothing,) * counts[1],
        coarse=(nothing,) * counts[1],
        head=nothing,
    )
    return simulate(plan, free, latency=1.0, bandwidth=float("inf")).step


def _parareal(plan: Plan, x: torch.Tensor, target: torch.Tensor) -> tuple[Callable[[], object], Callable[[], None]]:
    p = dist.get_world_size()
    mesh = init_device_mesh("cpu", (p,), mesh_dim_names=("parareal",))
    stage = pararealize(_network(WINDOWS * p), example_inputs=x, plan=plan).distribute(mesh)

    def step() -> None:
        stage.zero_grad(set_to_none=True)
        stage.step(x, target=target, loss_fn=cross_entropy)

    return step, stage.close


def _pipeline(
    chain: BlockChain, p: int, x: torch.Tensor, target: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], None]]:
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe  # it imports half of torch, and torchvision

    rank = dist.get_rank()
    module = chain.module(rank * WINDOWS, (rank + 1) * WINDOWS - 1)
    stage = PipelineStage(module, rank, p, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, MICROBATCHES, loss_fn=cross_entropy)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        inputs = (x,) if rank == 0 else ()
        schedule.step(*inputs, target=target if rank == p - 1 else None, return_outputs=False)

    return step, _nothing


def _copies(
    blocks: int, x: torch.Tensor, target: torch.Tensor, *, average: bool
) -> tuple[Callable[[], object], Callable[[], None]]:
    model = DistributedDataParallel(_network(blocks)) if average else _network(blocks)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model(x), target).backward()

    return step, _nothing


def _nothing() -> None:
    """There is nothing to close."""


def _steady(way: tuple[Callable[[], object], Callable[[], None]]) -> float:
    """Median seconds of a step among others in a row, on the slowest rank."""
    step, close = way
    rounds = []
    for _ in range(ROUNDS):
        dist.barrier()
        step()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        taken = torch.tensor((time.perf_counter() - start) / STEPS, dtype=torch.float64)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        rounds.append(float(taken))
    close()
    return median(rounds)
