"""A number -> one training run, at a random moment of which a random thing befalls a random rank."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimisers import it with their first step: seconds, in every forked process
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pararealize import pararealize as convert
from pararealize.models import resnet20

KINDS = {"kill": 2, "raise": 1, "stop": 1, "hang": 1}  # and how often each comes
SETTING_UP, OVER = 120.0, 20.0  # seconds that ranks get until they train, and beyond the time-out until they are stuck


class Injected(Exception):  # noqa: N818 (no error of anyone's)
    """What the struck rank raises."""


def _raise(*_: Any) -> None:
    raise Injected("struck by the benchmark")


def _hang(*_: Any) -> None:
    time.sleep(100_000)


def case(i: int, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> dict[str, Any]:
    """What run ``i`` is to be, of some kinds."""
    chance = random.Random(f"{seed} {i}")
    n = chance.choice([2, 3])
    kind = chance.choices(kinds, [KINDS[kind] for kind in kinds])[0]
    return {"n": n, "kind": kind, "rank": chance.randrange(n), "after": round(chance.uniform(0.0, 1.0), 3)}


def strike(n: int, kind: str, rank: int, after: float, *, timeout: float) -> dict[str, Any]:
    """Train on ``n`` ranks; ``after`` seconds from when all of them train, let ``kind`` befall ``rank``.

    Returns:
        ``ended``: seconds from then until each survivor's process had ended (``None``: it was stuck, and killed);
        ``named``: the rank that each survivor's error names; ``errors``: of all ranks that could tell; ``steps``: how
        many the struck rank had done.
    """
    with tempfile.TemporaryDirectory() as folder, processes(_train, n, n, folder, timeout) as ranks:
        wait_for([Path(folder) / f"training{k}" for k in range(n)], ranks)
        time.sleep(after)
        steps = int((Path(folder) / f"training{rank}").stat().st_size)
        sent = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": signal.SIGUSR1, "hang": signal.SIGUSR2}
        os.kill(ranks[rank].pid or 0, sent[kind])
        ended = ends({k: ranks[k] for k in range(n) if k != rank}, timeout + OVER)
        errors = {k: json.loads(text) for k, text in errors_in(Path(folder), n).items()}
    return {
        "steps": steps,
        "ended": ended,
        "named": {k: errors.get(k, {}).get("rank") for k in ended},
        "errors": {k: row["error"] for k, row in errors.items()},
    }


@contextlib.contextmanager
def processes(target: Callable[..., None], count: int, *arguments: Any) -> Iterator[list[Any]]:
    """Forked processes, called with their numbers and the arguments; at the end, those that are left are killed."""
    context = multiprocessing.get_context("fork")  # this process has imported torch, and has not run it
    ranks = [context.Process(target=target, args=(k, *arguments), daemon=True) for k in range(count)]
    for process in ranks:
        process.start()
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.join()


def wait_for(files: Sequence[Path], ranks: Sequence[Any]) -> None:
    """Wait until files are there that the processes write.

    Raises:
        RuntimeError: they are not in time, or a process has ended before.
    """
    until = time.monotonic() + SETTING_UP
    alive = True
    while not all(file.exists() for file in files) and time.monotonic() < until and alive:
        alive = all(process.exitcode is None for process in ranks)
        time.sleep(0.005)
    if not all(file.exists() for file in files):
        told = [path.read_text() for path in sorted(files[0].parent.glob("error*"))]
        raise RuntimeError(f"nothing happened: {[process.exitcode for process in ranks]}, {told}")


def errors_in(folder: Path, count: int) -> dict[int, str]:
    """What processes have written of their errors, by their numbers."""
    return {k: path.read_text() for k in range(count) if (path := folder / f"error{k}").exists()}


def ends(survivors: dict[int, Any], seconds: float) -> dict[int, float | None]:
    """When each process ended, in seconds from now."""
    began = time.monotonic()
    ended: dict[int, float | None] = dict.fromkeys(survivors)
    open_ = {process.sentinel: k for k, process in survivors.items()}
    while open_ and (remaining := began + seconds - time.monotonic()) > 0:
        for sentinel in wait(list(open_), timeout=remaining):
            ended[open_.pop(sentinel)] = round(time.monotonic() - began, 4)  # type: ignore[index]
    return ended


def _train(rank: int, n: int, folder: str, timeout: float) -> None:
    """Steps until something happens; a byte a step into a file, and the error into another one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGUSR1, _raise)
    signal.signal(signal.SIGUSR2, _hang)
    store = dist.FileStore(f"{folder}/store", n)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n)
    mesh = init_device_mesh("cpu", (n,), mesh_dim_names=("parareal",))
    stage = convert(resnet20(), n=n, coarse="linear").distribute(mesh, timeout=timeout)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.01)
    x, target = torch.randn(2, 3, 32, 32), torch.randint(0, 10, (2,))
    try:
        stage.step(x, target=target, loss_fn=torch.nn.functional.cross_entropy)
        with (Path(folder) / f"training{rank}").open("ab", buffering=0) as done:
            while True:
                optimizer.zero_grad()
                stage.step(x, target=target, loss_fn=torch.nn.functional.cross_entropy)
                optimizer.step()
                done.write(b".")
    except Exception as error:  # noqa: BLE001 (it is what is looked at)
        row = {"error": f"{type(error).__name__}: {error}", "rank": getattr(error, "rank", None)}
        (Path(folder) / f"error{rank}").write_text(json.dumps(row))
