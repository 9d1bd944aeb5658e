"""Processes that pass tensors up and down a line, as segments do, one of which comes to grief at a chosen point.

The launcher ends, by its process number, whatever has not ended by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pararealize.errors import PararealizeError
from pararealize.watch import Watch

POINTS = ("forward", "receive", "send", "backward", "sum", "between")  # of a step, where a fault can strike
STEPS, FAULTY_STEP = 1000, 3
WHO = [f"rank {rank} (segment {rank + 1})" for rank in range(4)]


def strike(kind: str) -> None:
    if kind == "raise":
        raise ValueError("a bad batch")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "sleep":
        time.sleep(1000)
    if kind == "hold":  # with Python's lock held, no thread of this process runs
        ctypes.PyDLL(None).sleep(1000)
    if kind == "exit":
        os._exit(3)
    if kind == "leave":
        sys.exit(0)


def line(rank: int, n: int, folder: str, kind: str, culprit: int, point: str, timeout: float, store: str) -> None:
    """A rank's life: steps until something happens; what it saw goes to a file of its own."""
    os.setpgid(0, 0)
    sys.stderr = (Path(folder) / f"stderr{rank}").open("w")
    torch.set_num_threads(1)
    wait = dt.timedelta(seconds=timeout)
    if store == "file":
        meeting: Any = dist.FileStore(f"{folder}/store", n)
    else:
        meeting = dist.TCPStore("127.0.0.1", int(store), n, is_master=rank == 0, wait_for_workers=False)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=n, timeout=dt.timedelta(seconds=60))
    result = Path(folder) / f"rank{rank}.json"
    watch = Watch(dist.group.WORLD, who=WHO[:n], timeout=timeout)
    began = time.time()

    def reach(place: str, step: int) -> None:
        nonlocal began
        if step == FAULTY_STEP:
            began = time.time()
            if (rank, place) == (culprit, point):
                result.with_suffix(".struck").write_text(str(began))
                strike(kind)

    error: BaseException | None = None
    try:
        for step in range(STEPS):
            reach("between", step)
            with watch.step():
                pass_through(watch, rank, n, step, wait, reach)
    except (PararealizeError, ValueError, RuntimeError) as caught:
        error = caught
    ended = time.time()
    done = {"error": str(error), "type": type(error).__name__, "rank": getattr(error, "rank", None), "ended": ended}
    result.with_suffix(".part").write_text(json.dumps(done))
    result.with_suffix(".part").replace(result)


def pass_through(watch: Watch, rank: int, n: int, step: int, wait: dt.timedelta, reach: Any) -> None:
    """Forward up the line, backward down it, and a sum over all: the waits of a training step."""
    z = torch.full((1000,), float(step))
    watch.doing(f"g^{rank + 1} forward")
    reach("forward", step)
    sent = []
    if rank > 0:
        received = dist.irecv(z, rank - 1)
        reach("receive", step)
        watch.waiting(f"z_{rank}", peer=rank - 1)
        received.wait(wait)
    if rank < n - 1:
        sent.append(dist.isend(z, rank + 1))
        reach("send", step)
        watch.waiting(f"the gradient of z_{rank + 1}", peer=rank + 1)
        dist.irecv(torch.empty(1000), rank + 1).wait(wait)
    watch.doing(f"g^{rank + 1} backward")
    reach("backward", step)
    if rank > 0:
        sent.append(dist.isend(z, rank - 1))
    for work in sent:
        work.wait(wait)
    watch.waiting("the sum of gradients")
    reach("sum", step)
    dist.all_reduce(z)


def launch(n: int, folder: Path, *arguments: Any, seconds: float, target: Any = line) -> list[dict[str, Any]]:
    """Run one process a rank; for each: how it ended (``code``, None where it had to be killed) and what it wrote."""
    context = multiprocessing.get_context("forkserver")  # children that have imported torch, of one that has not run it
    context.set_forkserver_preload(["torch", "torch.distributed", "pararealize.watch"])
    ranks = [context.Process(target=target, args=(rank, n, str(folder), *arguments)) for rank in range(n)]
    for process in ranks:
        process.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until and (left := [p for p in ranks if p.exitcode is None]):
        left[0].join(0.05)
        if [i for i, p in enumerate(ranks) if p.exitcode is None] == list(_hanging(folder, arguments)):
            break
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    found = [folder / f"rank{rank}.json" for rank in range(n)]
    seen = [json.loads(path.read_text()) if path.exists() else {} for path in found]
    return [{"code": code, **row} for code, row in zip(codes, seen, strict=True)]


def _hanging(folder: Path, arguments: tuple[Any, ...]) -> list[int]:
    """Who is meant to hang for ever, once it does."""
    kind, culprit = arguments[:2]
    return [culprit] if kind in ("stop", "sleep", "hold") and (folder / f"rank{culprit}.struck").exists() else []


def free_port() -> int:
    import socket

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port
