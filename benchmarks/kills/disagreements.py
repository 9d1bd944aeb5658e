"""A number -> one training run, at a random step of which a random rank does something else than the others."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pararealize import pararealize as convert
from pararealize.distributed.stage import Stage
from pararealize.errors import DistributedError
from pararealize.models import resnet20

from .run import OVER, ends, errors_in, processes, wait_for

__all__ = ["DISAGREEMENTS", "disagree", "disagreement"]

LAST = 30  # step in which a rank may deviate
Batch = tuple[torch.Tensor, torch.Tensor]


def batch(number: int, size: int = 2) -> Batch:
    """The batch of a step, the same on every rank."""
    generator = torch.Generator().manual_seed(100 * number + size)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.randint(10, (size,), generator=generator)


def step(stage: Stage, batch: Batch) -> None:
    stage.zero_grad()
    stage.step(batch[0], target=batch[1], loss_fn=torch.nn.functional.cross_entropy)


def usual(stage: Stage, number: int) -> None:
    """What all ranks do in a step: mostly the same, now and then another signature."""
    if number % 7 == 5:
        stage.eval()
        stage(batch(number)[0])
        stage.train()
    elif number % 7 == 3:
        with stage.no_sync():
            step(stage, batch(number))
    else:
        step(stage, batch(number, 3 if number % 5 == 2 else 2))


def in_eval_mode(stage: Stage, number: int) -> None:
    stage.eval()
    step(stage, batch(number))


def in_autocast(stage: Stage, number: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        step(stage, batch(number))


def without_sync(stage: Stage, number: int) -> None:
    with stage.no_sync():
        step(stage, batch(number))


def frozen(stage: Stage, number: int) -> None:
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    next(reversed(list(stage.parameters()))).requires_grad_()
    step(stage, batch(number))


# kind: (what the rank does in its step, patterns of both values); all others do ``step(stage, batch(number))``
DISAGREEMENTS: dict[str, tuple[Callable[[Stage, int], Any] | None, tuple[str, ...]]] = {
    "shape": (lambda stage, number: step(stage, batch(number, 3)), (r"\(2, 3, 32, 32\)", r"\(3, 3, 32, 32\)")),
    "new shape": (lambda stage, number: step(stage, batch(number, 5)), (r"\(2, 3, 32, 32\)", r"\(5, 3, 32, 32\)")),
    "type": (
        lambda stage, number: step(stage, (batch(number)[0].double(), batch(number)[1])),
        ("float32", "float64"),
    ),
    "mode": (in_eval_mode, ("train", "eval")),
    "autocast": (in_autocast, ("off", "bfloat16")),
    "call": (lambda stage, number: stage(batch(number)[0]), ("step", "inference")),
    "everywhere": (lambda stage, number: stage(batch(number)[0], everywhere=True), ("step", "inference, everywhere")),
    "no_sync": (without_sync, ("no_sync is o(n|ff) on rank",)),
    "clip": (lambda stage, _: stage.clip_grad_norm_(1.0), ("step", "clip_grad_norm_")),
    "skips a step": (lambda stage, number: step(stage, batch(number + 1)), ("some values of input", "digest.*digest")),
    "adds a step": (lambda stage, number: step(stage, batch(number - 1)), ("some values of input", "digest.*digest")),
    "ends early": (None, ("has left",)),
    "copy: no_sync": (without_sync, ("average gradients", "no_sync is o(n|ff) on rank")),
    "copy: frozen": (frozen, ("average gradients", "trained parameters")),
    "copy: a step less": (lambda stage, number: stage(batch(number)[0]), ("steps since the last inference",)),
}


def disagreement(i: int, seed: int, kinds: list[str]) -> dict[str, Any]:
    """What run ``i`` is to be: ``copies`` of the network on ``n`` ranks each; a kind of copies deviates as a copy."""
    chance = random.Random(f"disagreement {seed} {i}")
    n, kind = chance.choice([2, 3]), chance.choice(kinds)
    copies = 2 if kind.startswith("copy") else chance.choice([1, 2])
    return {
        "n": n,
        "copies": copies,
        "kind": kind,
        "rank": chance.randrange(n * copies),
        "after": chance.randint(1, LAST),
    }


def disagree(n: int, copies: int, kind: str, rank: int, after: int, *, timeout: float) -> dict[str, Any]:
    """Train; in step ``after`` let a rank deviate, or all ranks of its copy.

    Returns:
        ``ended``: seconds from then until each process had ended (``None``: it was stuck, and killed); ``named``:
        whether each rank's error has both values, and the rank; ``errors``: of all ranks that could tell.
    """
    size = n * copies
    arguments = (n, copies, kind, rank, after)
    with tempfile.TemporaryDirectory() as name, processes(_train, size, *arguments, name, timeout) as ranks:
        folder = Path(name)
        wait_for([folder / "deviated"], ranks)
        late = time.monotonic()
        ended = ends(dict(enumerate(ranks)), timeout + OVER)
        late -= float((folder / "deviated").read_text())
        ended = {k: None if seconds is None else round(seconds + late, 4) for k, seconds in ended.items()}
        errors = errors_in(folder, size)
    deviating = range(rank // n * n, rank // n * n + n) if kind.startswith("copy") else [rank]
    patterns = DISAGREEMENTS[kind][1]
    right = {
        k: all(re.search(pattern, errors.get(k, "")) for pattern in patterns)
        and any(re.search(rf"\b{one} \(", errors.get(k, "")) for one in deviating)
        for k in range(size)
        if not (kind == "ends early" and k == rank)
    }
    return {"ended": ended, "named": right, "errors": errors}


def _train(rank: int, n: int, copies: int, kind: str, odd: int, after: int, folder: str, timeout: float) -> None:
    """Steps until something is said, which goes into a file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.FileStore(f"{folder}/store", n * copies)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n * copies)
    mesh = init_device_mesh("cpu", (copies, n), mesh_dim_names=("dp", "parareal"))
    stage = convert(resnet20(), n=n, coarse="linear").distribute(mesh, timeout=timeout)
    deviates = rank // n == odd // n if kind.startswith("copy") else rank == odd
    action = DISAGREEMENTS[kind][0]
    try:
        for number in range(LAST + 200):
            if number != after:
                usual(stage, number)
                continue
            for size in (2, 3):  # what a rank deviates to may be known
                step(stage, batch(number, size))
            if deviates:
                part = Path(folder) / f"deviated{rank}"
                part.write_text(json.dumps(time.monotonic()))
                with contextlib.suppress(FileExistsError):  # the first one counts
                    os.link(part, Path(folder) / "deviated")
            if deviates and action is None:
                return
            action(stage, number) if deviates and action is not None else step(stage, batch(number))
    except DistributedError as error:
        (Path(folder) / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 (it is what is looked at)
        (Path(folder) / f"error{rank}").write_text(f"raw: {type(error).__name__}: {error}")
