"""Networks of which each rank holds a part, as stages do, and what processes do with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pararealize.distributed.checkpoint.optimizer import gather_optimizer_state, load_optimizer_state
from pararealize.distributed.checkpoint.sharded import load_sharded, save_sharded
from pararealize.distributed.checkpoint.state import gather_state_dict, load_state, save_state


class Network(nn.Module):
    """Linear maps, a batch norm (whose buffers have no axes), and three types of numbers."""

    group: dist.ProcessGroup | None = None
    mesh: DeviceMesh | None = None

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4))
        self.shared = nn.Parameter(torch.randn(5))
        self.phase = nn.Parameter(torch.randn(2, 3, dtype=torch.float64).mT)  # its memory is in another order
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("none", torch.empty(0, 3))
        self.head = nn.Linear(4, 2)

    def part(self, rank: int, ranks: int) -> Network:
        """What this rank holds; ``shared`` is on all of them."""
        held = ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "phase", "mask", "none", "head"]
        for i, name in enumerate(held):
            if i * ranks // len(held) != rank:
                parent = self.get_submodule(name.rpartition(".")[0])
                last = name.rpartition(".")[2]
                (parent._modules if last in parent._modules else parent._buffers if last in parent._buffers else
                 parent._parameters).pop(last)  # fmt: skip
        return self


def train(part: Network, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    """Gradients by name alone, so that every rank gets those of the whole network; ``stem.bias`` never gets one."""
    for step in range(steps):
        for name, parameter in part.named_parameters():
            generator = torch.Generator().manual_seed(sum(map(ord, name)) + step)
            if name != "stem.bias":
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()


def make(rank: int, ranks: int, folder: str, dp: int = 1, seed: int = 0) -> Network:
    """This rank's part, in the middle of a process group."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (dp, ranks // dp), mesh_dim_names=("dp", "parareal"))
    part = Network(seed).part(rank % (ranks // dp), ranks // dp)
    part.mesh, part.group = mesh, mesh.get_group("parareal")
    return part


def save_all(rank: int, ranks: int, folder: str, dp: int) -> None:
    part = make(rank, ranks, folder, dp)
    optimizer = torch.optim.Adam(part.parameters(), lr=0.01)
    train(part, optimizer)
    save_state(part, f"{folder}/one.safetensors")
    save_sharded(part, f"{folder}/many")
    whole = gather_state_dict(part, everywhere=True)
    first = gather_state_dict(part)
    assert bool(first) == (dist.get_rank(part.group) == 0)
    gathered = gather_optimizer_state(part, optimizer, everywhere=True)
    only = gather_optimizer_state(part, optimizer)
    assert bool(only) == (dist.get_rank(part.group) == 0)
    torch.save((whole, gathered), f"{folder}/gathered{rank}")


def load_all(rank: int, ranks: int, folder: str, saved: str) -> None:
    """Load by each way, go on training, and leave the result."""
    part = make(rank, ranks, folder, seed=1)
    _, state = torch.load(f"{saved}/gathered0", weights_only=True)
    load_state(part, f"{saved}/one.safetensors")
    again = Network(2).part(rank, ranks)
    load_sharded(again, f"{saved}/many")
    assert all(torch.equal(a, b) for a, b in zip(part.state_dict().values(), again.state_dict().values(), strict=True))
    optimizer = torch.optim.Adam(part.parameters(), lr=1.0)
    load_optimizer_state(part, optimizer, state)
    train(part, optimizer)
    save_state(part, f"{folder}/after.safetensors")


def fail(rank: int, ranks: int, folder: str, way: str) -> None:
    """What each rank sees of a save that goes wrong."""
    part = make(rank, ranks, folder)
    seen: dict[str, Any] = {}
    try:
        break_it(part, rank, Path(folder), way)
    except Exception as error:  # noqa: BLE001 (it is compared)
        seen = {"type": type(error).__name__, "error": str(error)}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(seen))


def break_it(part: Network, rank: int, folder: Path, way: str) -> None:
    if way == "there":
        folder.joinpath("many").mkdir(exist_ok=True)
        save_sharded(part, folder / "many")
    elif way == "disk":
        limit_files(part, rank)
        save_sharded(part, folder / "many")
    elif way == "file":
        limit_files(part, rank)
        save_state(part, folder / "one.safetensors")
    elif way == "kill":
        from torch.distributed.checkpoint import state_dict_saver

        if rank == 1:
            state_dict_saver.save = lambda *arguments, **keywords: os._exit(1)
        save_sharded(part, folder / "many")
    elif way == "nowhere":
        save_state(part, folder / "no" / "one.safetensors")
    elif way == "meta":
        if rank == 1:
            part.head.to("meta")
        save_sharded(part, folder / "many")
    elif way == "kinds":
        if rank == 1:
            part.shared = nn.Parameter(torch.zeros(6))
        gather_state_dict(part)
    elif way == "settings":
        gather_optimizer_state(part, torch.optim.SGD(part.parameters(), lr=0.1 + rank))
    elif way == "strangers":
        parameters = part.parameters() if rank == 0 else nn.Linear(1, 1).parameters()
        gather_optimizer_state(part, torch.optim.SGD(parameters, lr=0.1))


def limit_files(part: Network, rank: int) -> None:
    """A disk on which the first rank can write only a little, as a limit of a file's size."""
    import resource
    import signal

    if rank == 0:
        part.stem = nn.Linear(300, 300)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def real(seed: int = 0) -> Any:
    """A network with shared weights between segments and a tied embedding, converted."""
    from pararealize import pararealize
    from tests.models import LanguageModel

    torch.manual_seed(seed)
    return pararealize(LanguageModel(), n=3, coarse="linear", example_inputs=torch.randint(0, 11, (2, 5)), seed=seed)


def real_stages(rank: int, ranks: int, folder: str, dp: int, saved: str) -> None:
    """Train a real network on ranks, save it in every way, and load what another number of ranks saved."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (dp, ranks // dp), mesh_dim_names=("dp", "parareal"))
    stage = real(seed=1).distribute(mesh, timeout=60.0)
    optimizer = torch.optim.Adam(stage.parameters(), lr=0.01)
    if saved:
        load_sharded(stage, f"{saved}/many")
        load_state(stage, f"{saved}/one.safetensors")
        load_optimizer_state(stage, optimizer, torch.load(f"{saved}/optimizer", weights_only=True))
    x = torch.arange(10).reshape(2, 5)
    for _ in range(2):
        optimizer.zero_grad()
        stage.step(x, target=torch.zeros(2, 5, 11), loss_fn=square)
        optimizer.step()
    save_sharded(stage, f"{folder}/many")
    save_state(stage, f"{folder}/one.safetensors")
    if (state := gather_optimizer_state(stage, optimizer)) and rank == 0:
        torch.save(state, f"{folder}/optimizer")


def square(output: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    return (output["logits"] - target).square().mean()
