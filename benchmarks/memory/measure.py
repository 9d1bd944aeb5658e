"""One rank of the experiment -> what it holds: a row of numbers."""

from __future__ import annotations

import gc
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import models, pararealize

__all__ = ["Kept", "run"]


def run(rank: int, ranks: int, port: int, network: str, coarse: str, batch: int, report: Any) -> None:
    """Convert, train two steps, and put what this rank holds into ``report``."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(minutes=5)
    )
    torch.manual_seed(0)
    x, target = torch.randn(batch, 3, 32, 32), torch.randint(100, (batch,))
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("parareal",))
    model = getattr(models, network)(num_classes=100)
    stage = pararealize(model, ranks, example_inputs=x, coarse=coarse).distribute(mesh)
    del model
    optimiser = torch.optim.SGD(stage.parameters(), lr=1e-3, momentum=0.9)
    kept = 0
    for counted in (False, True):
        gc.collect()
        optimiser.zero_grad(set_to_none=True)
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        with Kept(stage) if counted else torch.enable_grad() as saved:
            stage.step(x, target=target, loss_fn=F.cross_entropy)
        optimiser.step()
        kept = saved.bytes if counted else 0
    weights = sum(p.numel() * p.element_size() for p in stage.parameters())
    state = 3 * weights + sum(b.numel() * b.element_size() for b in stage.buffers())
    report.put(
        {
            "rank": rank,
            "parameters": sum(p.numel() for p in stage.parameters()),
            "state_mib": state / 2**20,
            "kept_mib": kept / 2**20,
            "total_mib": (state + kept) / 2**20,
            "risen_mib": (_resident("VmHWM") - before) / 1024,
        }
    )
    distributed.destroy_process_group()


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps for the backward pass, each memory once, parameters left out."""

    def __init__(self, module: nn.Module) -> None:
        self.bytes = 0
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        self.alive: list[torch.Tensor] = []  # so that no address is used twice
        super().__init__(self.pack, lambda tensor: tensor)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.alive.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> Kept:
        super().__enter__()
        return self


def _resident(field: str) -> float:
    """KiB that the process holds now (VmRSS), or at most since the last reset (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
