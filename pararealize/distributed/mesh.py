"""The processes that torchrun started, n -> the mesh of a distributed network: its ranks, its copies."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pararealize.errors import DistributedError

__all__ = ["make_mesh", "started_by_torchrun"]


def started_by_torchrun() -> bool:
    """Whether this process is one of several that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def make_mesh(n: int, *, ranks: int | None = None, device: str | None = None, timeout: float = 600.0) -> DeviceMesh:
    """Join the other processes, and give the mesh ``(dp, parareal)`` of all of them.

    Args:
        n: segments.
        ranks: how many ranks hold one network, each several segments where there are fewer ranks than segments; one a
            segment where left out.
        device: ``"cpu"`` or ``"cuda"``; GPUs where left out, if each process of this machine can have one.
        timeout: seconds that any wait may last.

    Raises:
        DistributedError: the processes cannot be divided so.
    """
    world, here = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    each = n if ranks is None else ranks
    faults = []
    if not 1 <= each <= n:
        faults.append(f"{each} ranks cannot hold {n} segments, of which each has one or more; ask for 1 to {n}")
    elif world % each:
        fits = [r for r in range(1, n + 1) if world % r == 0]
        faults.append(
            f"{world} processes cannot be divided into networks of {each} ranks ({n} segments); start a multiple of "
            f"{each}, or let a rank hold several segments: --ranks {fits[-1]} (ranks={fits[-1]})"
        )
    if device not in (None, "cpu", "cuda"):
        faults.append(f"the device is {device!r}; over several processes it is 'cpu' or 'cuda'")
    if faults:
        raise DistributedError("; ".join(faults))
    kind = device or ("cuda" if torch.cuda.device_count() >= here else "cpu")
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    return init_device_mesh(kind, (world // each, each), mesh_dim_names=("dp", "parareal"))
