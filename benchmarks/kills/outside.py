"""A number -> one run in which something befalls a random rank outside of every step: before, or between them."""

from __future__ import annotations

import contextlib
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pararealize import layer_parallel
from pararealize import pararealize as convert
from pararealize.distributed import distribution, rank_setup
from pararealize.distributed.checkpoint import (
    gather_optimizer_state,
    gather_state_dict,
    save_sharded,
    save_state,
)
from pararealize.distributed.stage import Stage
from pararealize.errors import PararealizeError
from pararealize.models import resnet20
from pararealize.multigrid.distributed import distribution as layer_distribution

from .run import OVER, ends, errors_in, processes, wait_for

__all__ = ["OUTSIDE", "befall", "occurrence"]

LAST = 12  # step after which something happens
FOREVER = 100_000.0


class Chain(nn.Module):
    """Residual layers of one width."""

    def __init__(self, layers: int = 12, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + 0.1 * torch.tanh(layer(x))
        return self.head(x)


class Run:
    """One rank of a run: what a kind of fault may use.

    Attributes:
        rank: this one.
        odd: the one that something befalls.
        after: the step after which it does.
        folder: of the run's files.
        chance: for the fault's own choices, the same on all ranks.
        mesh: of all ranks.
        part: of the ranks from the odd one on.
        x: a batch.
        stage: of this rank, once there is one.
        optimizer: over its parameters.
    """

    def __init__(self, rank: int, odd: int, after: int, folder: Path, seed: str, mesh: DeviceMesh) -> None:
        self.rank, self.odd, self.after, self.folder, self.mesh = rank, odd, after, folder, mesh
        self.chance = random.Random(seed)
        self.part = DeviceMesh("cpu", list(range(odd, mesh.size())), mesh_dim_names=("parareal",))
        self.x = torch.ones(2, 8)
        self.stage: Stage
        self.optimizer: torch.optim.Optimizer

    def struck(self) -> None:
        """Write down when it happens."""
        part = self.folder / "struck.part"
        part.write_text(repr(time.monotonic()))
        part.rename(self.folder / "struck")


def step(run: Run) -> None:
    run.optimizer.zero_grad()
    target = torch.zeros(2, dtype=torch.long)
    run.stage.step(run.x, target=target, loss_fn=torch.nn.functional.cross_entropy)
    run.optimizer.step()


# Between steps: what the odd rank does; the others make steps, or what ``others`` says -------------------------------


def hang(run: Run) -> None:
    run.struck()
    time.sleep(FOREVER)


def hang_in_optimizer(run: Run) -> None:
    run.optimizer.step = lambda *_: hang(run)  # type: ignore[method-assign, assignment]
    step(run)


def hang_in_checkpoint(run: Run) -> None:
    """In the midst of it where the rank has a part in it; copies other than the first wait."""
    if run.rank >= run.mesh["parareal"].size():
        hang(run)
    run.stage.register_state_dict_pre_hook(lambda *_: hang(run))  # type: ignore[no-untyped-call]
    save(run)


def save(run: Run) -> None:
    save_sharded(run.stage, run.folder / "many")


def barrier(run: Run) -> None:
    with contextlib.suppress(RuntimeError):  # gloo's own: the next step says what it was
        dist.barrier()
    step(run)


def exit_after_error(run: Run) -> None:
    try:
        raise ValueError("a bad batch")
    except ValueError:
        run.struck()
        sys.exit(3)


def raise_exit(run: Run) -> None:
    run.struck()
    raise SystemExit(4)


def exit_at_once(run: Run) -> None:
    run.struck()
    os._exit(5)


def raise_error(run: Run) -> None:
    run.struck()
    raise ValueError("a bad batch")


def leave(run: Run) -> None:
    run.struck()
    sys.exit(0)


def call(run: Run) -> None:
    """Something that the others do not call."""
    calls: dict[str, Callable[[], Any]] = {
        "gather_state_dict": lambda: gather_state_dict(run.stage),
        "gather_optimizer_state": lambda: gather_optimizer_state(run.stage, run.optimizer),
        "save_state": lambda: save_state(run.stage, run.folder / "one"),
        "save_sharded": lambda: save(run),
        "clip_grad_norm_": lambda: run.stage.clip_grad_norm_(1.0),
        "load_state_dict": lambda: run.stage.load_state_dict(run.stage.state_dict()),
        "record": lambda: run.stage.record().__enter__(),
    }
    name = run.chance.choice(list(calls))
    run.struck()
    calls[name]()
    step(run)


# Before and in ``distribute``: what is done instead of it, or to it ---------------------------------------------------


def strike_within(run: Run, action: Callable[[Run], None]) -> None:
    """Let something happen while the ranks compare their weights, or while this one copies its modules."""

    def struck(*_: Any, **__: Any) -> None:
        action(run)

    if run.chance.random() < 0.5:
        rank_setup.agree_on_weights = struck
    else:
        distribution.copy_modules = layer_distribution.copy_modules = struck  # type: ignore[assignment]


WRONG: list[dict[str, Any]] = [
    {"timeout": None}, {"timeout": "10"}, {"bucket_bytes": "1"}, {"bucket_bytes": 0}, {"mesh": "cpu"}, {"mesh": None}
]  # fmt: skip

# kind: (when, what the odd rank does, what the others do instead of a step, what their errors say of it)
Kind = tuple[str, Callable[[Run], None] | None, Callable[[Run], None], str]
OUTSIDE: dict[str, Kind] = {
    "hang in loader": ("between", hang, step, r"rank ODD \(.*has not answered .*outside every step, after step"),
    "hang in optimiser": ("between", hang_in_optimizer, step, r"rank ODD \(.*has not answered .*outside every step"),
    "hang in checkpoint": ("between", hang_in_checkpoint, save, r"rank ODD \(.*has not answered"),
    "hang before checkpoint": ("between", hang, save, r"rank ODD \(.*has not answered .*outside every step"),
    "hang before barrier": ("between", hang, barrier, r"rank ODD \(.*has not answered .*outside every step"),
    "error": ("between", raise_error, step, r"rank ODD \(.*failed outside every step.*: ValueError: a bad batch"),
    "sys.exit after an error": (
        "between", exit_after_error, step, r"rank ODD \(.*left with exit status 3, after ValueError: a bad batch"
    ),
    "SystemExit": ("between", raise_exit, step, r"rank ODD \(.*left with exit status 4"),
    "os._exit": ("between", exit_at_once, step, r"rank ODD \(.*died \(its process is gone"),
    "leaves": ("between", leave, step, r"rank ODD \(.*has left"),
    "call of its own": ("between", call, step, r"call is .*step.* on rank .*|rank ODD|\bODD \("),
    "hang before distribute": ("before", hang, step, r"and rank ODD did not within"),
    "death before distribute": ("before", exit_at_once, step, r"and rank ODD did not within"),
    "error before distribute": ("before", raise_error, step, r"and rank ODD did not within"),
    "hang in distribute": ("within", hang, step, r"rank ODD\b.*has not answered .*(dividing|copying|weights)"),
    "death in distribute": ("within", exit_at_once, step, r"rank ODD\b.*died"),
    "error in distribute": ("within", raise_error, step, r"rank ODD\b.*failed .*ValueError: a bad batch"),
    "wrong argument": ("argument", None, step, r"rank ODD: (timeout|bucket_bytes|mesh) is"),
    "other mesh": ("mesh", None, step, r"mesh has the ranks .*on rank|rank ODD did not within"),
}  # fmt: skip


def occurrence(i: int, seed: int, kinds: list[str]) -> dict[str, Any]:
    """What run ``i`` is to be: ``copies`` of a network of some ``method`` on ``n`` ranks each."""
    chance = random.Random(f"outside {seed} {i}")
    n, copies, kind = chance.choice([2, 3]), chance.choice([1, 1, 2]), kinds[i % len(kinds)]
    lowest = 1 if kind == "other mesh" else 0  # its mesh has the ranks from it on
    return {
        "n": n,
        "copies": copies,
        "kind": kind,
        "method": chance.choice(["parareal", "parareal", "multigrid"]),
        "rank": chance.randrange(lowest, n * copies),
        "after": chance.randint(1, LAST),
    }


def befall(n: int, copies: int, kind: str, method: str, rank: int, after: int, *, timeout: float) -> dict[str, Any]:
    """Train; after step ``after``, or before the first, something befalls a rank.

    Returns:
        ``ended``: seconds from then until each of the others had ended (``None``: it was stuck, and killed);
        ``culprit``: the same of the struck rank; ``named``: whether each error names it; ``errors``: of all ranks.
    """
    size = n * copies
    arguments = (n, copies, kind, method, rank, after)
    with tempfile.TemporaryDirectory() as name, processes(_rank, size, *arguments, name, timeout) as ranks:
        folder = Path(name)
        wait_for([folder / "struck"], ranks)
        late = time.monotonic() - float((folder / "struck").read_text())
        others = {k: process for k, process in enumerate(ranks) if k != rank}
        ended = {k: s if s is None else round(s + late, 3) for k, s in ends(others, 2 * timeout + OVER).items()}
        now = time.monotonic()
        (own,) = ends({rank: ranks[rank]}, 2 * timeout + OVER).values()
        culprit = own if own is None else round(own + now - float((folder / "struck").read_text()), 3)
        errors = errors_in(folder, size)
    pattern = OUTSIDE[kind][3].replace("ODD", str(rank))
    named = {k: bool(re.search(pattern, errors.get(k, ""), re.DOTALL)) for k in others}
    typed = {k: "raw: " not in errors.get(k, "") for k in others}
    return {"ended": ended, "culprit": culprit, "named": {k: named[k] and typed[k] for k in others}, "errors": errors}


def _rank(
    rank: int, n: int, copies: int, kind: str, method: str, odd: int, after: int, folder: str, timeout: float
) -> None:
    """Do what all ranks do, and what befalls this one; its error goes into a file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = n * copies
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (copies, n), mesh_dim_names=("dp", "parareal"))
    run = Run(rank, odd, after, Path(folder), f"{kind} {odd} {after}", mesh)
    try:
        _train(run, kind, method, n, timeout)
    except PararealizeError as error:
        (Path(folder) / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
    except Exception as error:
        (Path(folder) / f"error{rank}").write_text(f"raw: {type(error).__name__}: {error}")
        if rank == odd:
            raise


def _train(run: Run, kind: str, method: str, n: int, timeout: float) -> None:
    when, action, others, _ = OUTSIDE[kind]
    is_odd = run.rank == run.odd
    net: Any
    if method == "multigrid":
        net = layer_parallel(Chain(), example_inputs=run.x)
    else:
        run.x = torch.ones(2, 3, 32, 32)
        net = convert(resnet20(), n=n, coarse="linear")
    arguments: dict[str, Any] = {"mesh": run.mesh, "timeout": timeout}
    if when == "argument" and is_odd:
        arguments |= run.chance.choice(WRONG)
    if when == "mesh" and is_odd:
        arguments["mesh"] = run.part
    dist.barrier()  # a machine with other work starts processes at different times
    if when == "before" and is_odd and action is not None:
        action(run)
    if when == "within" and is_odd and action is not None:
        strike_within(run, action)
    if when in ("argument", "mesh") and is_odd:
        run.struck()
    run.stage = net.distribute(**arguments)
    run.optimizer = torch.optim.SGD(run.stage.parameters(), lr=0.01)
    for number in range(LAST + 200):
        if number != run.after or when != "between":
            step(run)
        elif is_odd and action is not None:
            action(run)
        else:
            others(run)
