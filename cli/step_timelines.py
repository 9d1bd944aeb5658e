"""A network that has been worked with -> one of its steps in time, for the page: recorded here, and predicted.

The prediction is made of what the network's parts take by themselves on this machine, and, over several processes, of
what messages between them take. Steps are taken when all files are written: they change gradients and statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import working

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from pararealize import PararealModule, Plan, Stage, Timeline
    from pararealize.data.dataset import Dataset
    from pararealize.data.own_batches import OwnBatches
    from pararealize.plan import RecordedAction

__all__ = ["SAMPLES", "forward_pass", "of_processes", "of_this_process", "on_device_of"]

REPEATS, WARMUP = 3, 1  # of each part
SAMPLES = 32  # of a forward pass


def forward_pass(page: Path | None, net: PararealModule, samples: Dataset | OwnBatches) -> list[Timeline]:
    """A forward pass of some samples, where a page is to show it; the network is in eval mode afterwards."""
    if page is None:
        return []
    with working("recording a forward pass"):
        return of_this_process(net.eval(), samples.example(SAMPLES))


def of_this_process(net: nn.Module, x: Any, target: torch.Tensor | None = None) -> list[Timeline]:
    """A step of a network in one process: predicted on a device for each segment and on one, and recorded here.

    Args:
        net: the network; any but a parareal one has no such timelines.
        x: a batch of inputs.
        target: its labels; without them there is no backward pass.
    """
    from pararealize import PararealModule, measure_network, simulate

    if not isinstance(net, PararealModule):
        return []
    x, target = on_device_of(net, x), on_device_of(net, target)
    trains = target is not None
    times, _ = measure_network(net, x, repeats=REPEATS, warmup=WARMUP)
    ranks = sorted({net.plan.n, 1}, reverse=True)
    predicted = [simulate(net.plan, times, batch=_samples(x), ranks=each, training=trains) for each in ranks]
    if len({parameter.device for parameter in net.parameters()}) > 1:
        return predicted
    plan = net.plan
    with _one_process(next(net.parameters()).device) as mesh:
        stage = net.distribute(mesh)
        return [*predicted, _timeline(_recorded(stage, x, target), plan, "one process, one part after the other")]


def of_processes(stage: Stage, x: Any, target: torch.Tensor, rebuild: Callable[[], PararealModule]) -> list[Timeline]:
    """A step over the processes that torchrun started: predicted, and recorded; on rank 0, and nothing on others.

    Args:
        stage: this rank's.
        x: a batch of inputs, of this copy of the network.
        target: its labels.
        rebuild: gives the whole network, whose parts are measured.
    """
    import torch.distributed as dist

    from pararealize import measure_network, simulate
    from pararealize.profiles import measure_link

    plan, group = stage.plan, stage.rank_setup.mesh.get_group("parareal")
    own = _recorded(stage, x, target)
    rows: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(rows, own, group=group)
    link = measure_link(device=stage.device) if dist.get_world_size() > 1 else None
    if dist.get_rank() > 0:
        return []
    recorded = _timeline([row for each in rows for row in each], plan, f"{len(rows)} processes of this run")
    whole = rebuild().to(stage.device)
    times, _ = measure_network(whole, on_device_of(whole, x), repeats=REPEATS, warmup=WARMUP)
    latency, bandwidth = (None, None) if link is None else (link.latency, link.bandwidth)
    predicted = simulate(plan, times, batch=_samples(x), ranks=len(rows), latency=latency, bandwidth=bandwidth)
    return [predicted, recorded]


def _recorded(stage: Stage, x: Any, target: torch.Tensor | None) -> list[RecordedAction]:
    """What this rank does in the second of two steps; the first allocates memory and agrees on formats."""
    from torch.nn.functional import cross_entropy

    def step() -> None:
        if target is None and isinstance(x, dict):
            stage(**x)
        elif target is None:
            stage(x)
        else:
            stage.step(x, target=target, loss_fn=cross_entropy)

    step()
    with stage.record() as recording:
        step()
    return recording.actions


def _timeline(rows: list[RecordedAction], plan: Plan, where: str) -> Timeline:
    from pararealize import Timeline

    return Timeline.recorded(rows, model=plan.model, n=plan.n, source=plan.source, notes=(f"recorded: {where}",))


def on_device_of(net: nn.Module, inputs: Any) -> Any:
    """Tensors where a network begins; anything else as it is."""
    import torch
    from torch.utils import _pytree as pytree

    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    return pytree.tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, inputs)


def _samples(x: Any) -> int:
    value = next(iter(x.values())) if isinstance(x, dict) else x
    return int(value.shape[0])


@contextmanager
def _one_process(device: torch.device) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield init_device_mesh(device.type, (1,))
    finally:
        dist.destroy_process_group()
