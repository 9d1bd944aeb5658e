"""Two ranks: one network's step in every way, at some batches, beside what its blocks' measured seconds predict.

one         one process
copies      DistributedDataParallel over both ranks
pipeline    GPipe over both ranks, torch.distributed.pipelining, the number of microbatches that is predicted best
parareal    two segments with linear coarse blocks
windows     the same in several windows
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from benchmarks.ranks import Case, Measurement
from pararealize import BlockChain, Plan, Stage, capture, find_blocks, models, pararealize, receptive_fields
from pararealize.profiles import DeviceProfile, Link, measure_device, measure_link
from pararealize.strategies.measured_blocks import MeasuredBlocks
from pararealize.strategies.measured_ranks import measure_ranks
from pararealize.strategies.network_costs import NetworkCosts
from pararealize.strategies.parareal import PararealPlans
from pararealize.strategies.pipeline import stages_of
from pararealize.strategies.replicas import data_parallel, one_device

__all__ = ["NETWORKS", "WAYS", "measure"]

WAYS = ("one", "copies", "pipeline", "parareal", "windows")
ROUNDS, SECONDS, FEWEST = 5, 0.3, 5  # of steps in a row of every way, which take so long, and are so many, at least
WINDOWS = 4
MICROBATCHES = (1, 2, 4, 8)


class Residual(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def _perceptron() -> nn.Module:
    width = 256
    blocks = (
        Residual(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        )
        for _ in range(16)
    )
    return nn.Sequential(nn.Linear(64, width), *blocks, nn.Linear(width, 10))


def _transformer() -> nn.Module:
    layers = (nn.TransformerEncoderLayer(96, 4, 384, dropout=0.0, batch_first=True, norm_first=True) for _ in range(12))
    return nn.Sequential(nn.Linear(16, 96), *layers, nn.Flatten(), nn.Linear(32 * 96, 10))


def _convolutions() -> nn.Module:
    layers = (
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()) for _ in range(16)
    )
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet56": (lambda: models.build("resnet56"), (3, 32, 32)),
    "perceptron": (_perceptron, (64,)),
    "transformer": (_transformer, (32, 16)),
    "convolutions": (_convolutions, (3, 16, 16)),
}


class _Prediction(NamedTuple):
    """What rank 0 predicts, and what all ranks need for their steps.

    Attributes:
        seconds: by way.
        plans: of the parareal ways, as JSON.
        end: the first block of the pipeline's second stage.
        microbatches: of the pipeline.
    """

    seconds: dict[str, float]
    plans: dict[str, str]
    end: int
    microbatches: int


def measure(case: Case) -> Iterator[Measurement]:
    """One network at one batch: predictions of rank 0, and steps in a row of all ways in turn, medians of rounds."""
    torch.manual_seed(0)
    make, shape = NETWORKS[case["network"]]
    batch, rank = case["batch"], distributed.get_rank()
    x, target = torch.randn(batch, *shape), torch.randint(10, (batch,))

    def build() -> nn.Module:
        torch.manual_seed(0)  # ranks have one network
        return make()

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("parareal",))
    device: list[Any] = [measure_device("cpu").to_json() if rank == 0 else None]
    distributed.broadcast_object_list(device)
    profile = DeviceProfile.from_json(device[0])
    link = measure_ranks(measure_link(name="gloo"), profile)
    shared: list[Any] = [_predict(build(), shape, batch, link, profile) if rank == 0 else None]
    distributed.broadcast_object_list(shared)
    prediction: _Prediction = shared[0]
    for way, seconds in prediction.seconds.items():
        yield way, "predicted", seconds
    model = build()
    ways = {"one": lambda: _step(model, x, target) if rank == 0 else None}
    if batch > 1:
        copy, here = DistributedDataParallel(build()), slice(rank * batch // 2, (rank + 1) * batch // 2)
        ways["copies"] = lambda: _step(copy, x[here], target[here])
    ways["pipeline"] = _pipeline(build(), x, target, prediction)
    stages = {way: _stage(build(), x, Plan.from_json(text), mesh) for way, text in prediction.plans.items()}
    for way, stage in stages.items():
        ways[way] = lambda stage=stage: _stage_step(stage, x, target)
    counts = {name: _count(_in_a_row(way, 1)) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            seconds[name].append(_in_a_row(way, counts[name]))
    for name, values in seconds.items():
        yield name, "measured", median(values)
        yield name, "least", min(values)
        yield name, "steps", counts[name]
    for stage in stages.values():
        stage.close()


def _in_a_row(way: Callable[[], Any], count: int) -> float:
    """Seconds of a step on the slower rank: of so many behind one that does not count."""
    distributed.barrier()
    way()
    began = time.perf_counter()
    for _ in range(count):
        way()
    taken = torch.tensor((time.perf_counter() - began) / count, dtype=torch.float64)
    distributed.all_reduce(taken, distributed.ReduceOp.MAX)
    return float(taken)


def _count(step: float) -> int:
    """How many steps are measured in a row."""
    return max(math.ceil(SECONDS / step), FEWEST)


def _predict(model: nn.Module, shape: tuple[int, ...], batch: int, link: Link, profile: DeviceProfile) -> _Prediction:
    """From the blocks' seconds at the batch and at the smallest microbatch, between which all others are."""
    sizes = tuple(sorted({max(1, batch // MICROBATCHES[-1]), batch}))
    chain = find_blocks(capture(model, torch.randn(batch, *shape)))
    costs = NetworkCosts(chain, receptive_fields(chain), MeasuredBlocks(chain, sizes), profile, link)
    plans = PararealPlans(costs)
    rows = {
        "parareal": plans.strategy(2, 1, batch, "linear"),
        "windows": plans.strategy(2, 1, batch, "linear", WINDOWS),
    }
    copies = data_parallel(costs, 2, batch)
    staged = {m: stages_of(costs, 2, batch // m) for m in MICROBATCHES if batch % m == 0 and (batch // m > 1 or m == 1)}
    pipelines = {m: (one[1].gpipe(m), one[0][0]) for m, one in staged.items() if one is not None}
    m, (step, end) = min(pipelines.items(), key=lambda item: item[1][0])
    seconds = {"one": one_device(costs, batch).step, "pipeline": step}
    seconds |= {way: row.step for way, row in rows.items() if row is not None}
    seconds |= {} if copies is None else {"copies": copies.step}
    texts = {way: row.plan.to_json() for way, row in rows.items() if row is not None and row.plan is not None}
    return _Prediction(seconds, texts, end, m)


def _stage_step(stage: Stage, x: torch.Tensor, target: torch.Tensor) -> None:
    stage.zero_grad(set_to_none=True)
    stage.step(x, target=target, loss_fn=cross_entropy)


def _stage(model: nn.Module, x: torch.Tensor, plan: Plan, mesh: DeviceMesh) -> Stage:
    return pararealize(model, example_inputs=x, plan=plan).distribute(mesh)


def _pipeline(model: nn.Module, x: torch.Tensor, target: torch.Tensor, prediction: _Prediction) -> Callable[[], Any]:
    """This rank's half of the network in a GPipe schedule."""
    rank, chain = distributed.get_rank(), find_blocks(capture(model, x))
    stage = PipelineStage(_half(chain, prediction.end, rank), rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, prediction.microbatches, loss_fn=cross_entropy)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        if rank == 0:
            schedule.step(x, return_outputs=False)
        else:
            schedule.step(target=target, return_outputs=False)

    return step


def _half(chain: BlockChain, end: int, rank: int) -> nn.Module:
    if rank:
        return nn.Sequential(chain.module(end, len(chain.blocks) - 1), chain.piece(chain.head))
    return nn.Sequential(*([chain.piece(chain.stem)] if chain.stem.nodes else []), chain.module(0, end - 1))


def _step(module: nn.Module, x: torch.Tensor, target: torch.Tensor) -> None:
    module.zero_grad(set_to_none=True)
    cross_entropy(module(x), target).backward()
