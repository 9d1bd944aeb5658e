"""Sharded checkpoints of three steps, written by two ranks: loaded by one process."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pararealize.distributed.checkpoint import load_sharded, save_sharded
from pararealize.errors import PararealizeError

from ..trial import Trial
from .folders import change_folder
from .weights import network, same

__all__ = ["Shards"]

RANKS, STEPS = 2, 3


def _save(rank: int, folder: str) -> None:
    """A rank's part of each step: every other layer."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", RANKS), rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("parareal",))
    for step in range(STEPS):
        part = network(step)
        for name in [name for i, (name, _) in enumerate(part.named_children()) if i % RANKS != rank]:
            delattr(part, name)
        part.mesh, part.group = mesh, mesh.get_group("parareal")  # type: ignore[assignment]
        save_sharded(part, f"{folder}/step-{step}")
    dist.destroy_process_group()


class Shards:
    """The last of the steps is changed; the others stand beside it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fuzz-shards-"))
        context = multiprocessing.get_context("spawn")
        ranks = [context.Process(target=_save, args=(rank, str(self.root))) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise RuntimeError("the shards could not be written")
        (self.root / "store").unlink(missing_ok=True)

    def __del__(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def __call__(self, random: Random, folder: Path) -> Trial:
        shutil.copytree(self.root, folder / "all")
        last = folder / "all" / f"step-{STEPS - 1}"
        others = [folder / "all" / f"step-{step}" for step in range(STEPS - 1)]
        change = "; ".join(change_folder(last, others, random) for _ in range(random.choice((1, 1, 1, 2))))
        strict = random.random() < 0.7

        def attempt() -> str:
            net, before = network(7), network(7).state_dict()
            try:
                load_sharded(net, last, strict=strict)
            except PararealizeError:
                if not same(net.state_dict(), before):
                    return "an error, and the network has changed"
                raise
            return "" if same(net.state_dict(), network(STEPS - 1).state_dict()) else "other weights than were written"

        return Trial(change=change, attempt=attempt)
