"""Processes that pass tensors up and down a line, as segments do, one of which comes to grief at a chosen point.

The launcher ends, by its process number, whatever has not ended by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import PararealizeError
from tests.ranks import CONTEXT

POINTS = ("forward", "receive", "send", "backward", "sum", "between")  # of a step, where a fault can strike
STEPS, FAULTY_STEP = 1000, 3
WHO = [f"rank {rank} (segment {rank + 1})" for rank in range(4)]


def strike(kind: str) -> None:
    if kind in ("raise", "linger"):
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
    if kind == "status":  # of a script that catches its error
        try:
            raise ValueError("a bad batch")
        except ValueError:
            sys.exit(3)
    if kind == "SystemExit":
        raise SystemExit("no data")


def stop_after_heartbeat(watch: Watch) -> None:
    """Let the watching thread stop the process when it has sent its next heartbeat, before it judges anybody."""
    assert watch._connections is not None
    send = watch._connections.send

    def send_and_stop(message: Any) -> None:
        send(message)
        watch._connections.send = send  # type: ignore[union-attr, method-assign]
        os.kill(os.getpid(), signal.SIGSTOP)

    watch._connections.send = send_and_stop  # type: ignore[method-assign]


def line(rank: int, n: int, folder: str, kind: str, culprit: int, point: str, timeout: float, store: str) -> None:
    """A rank's life: steps until something happens; what it saw goes to a file of its own."""
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
                if kind == "close":
                    watch.close()
                    time.sleep(1000)
                if kind == "stop the watch":
                    stop_after_heartbeat(watch)
                    time.sleep(2)
                strike(kind)

    error: BaseException | None = None
    try:
        for step in range(STEPS):
            if (kind, step) == ("sleep", FAULTY_STEP) and point == "barrier":  # of their own, outside of every step
                reach("barrier", step)
                with contextlib.suppress(RuntimeError):
                    dist.barrier()
            reach("between", step)
            with watch.step():
                pass_through(watch, rank, n, step, wait, reach)
    except (PararealizeError, ValueError, RuntimeError) as caught:
        error = caught
    ended = time.time()
    done = {"error": str(error), "type": type(error).__name__, "rank": getattr(error, "rank", None), "ended": ended}
    result.with_suffix(".part").write_text(json.dumps(done))
    result.with_suffix(".part").replace(result)
    if (kind, culprit) == ("linger", rank):  # with its connections open
        time.sleep(1000)


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


def grid(rank: int, n: int, folder: str, kind: str, culprit: int, point: str, timeout: float, store: str) -> None:
    """Three ranks, two groups: 0 and 1 are segments of one network, 0 and 2 replicas; 1 and 2 never speak."""
    torch.set_num_threads(1)
    meeting = dist.FileStore(f"{folder}/store", n)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=n, timeout=dt.timedelta(seconds=60))
    segments, replicas = dist.new_group([0, 1]), dist.new_group([0, 2])
    watch = Watch(meeting, rank=rank, who=WHO[:n], timeout=timeout)
    error: BaseException | None = None
    try:
        for step in range(STEPS):
            with watch.step():
                watch.doing("g forward")
                if (rank, step) == (culprit, FAULTY_STEP):
                    strike(kind)
                for group in (segments, replicas):
                    if dist.get_rank(group) >= 0:
                        watch.waiting("a sum")
                        dist.all_reduce(torch.zeros(1000), group=group)
    except (PararealizeError, ValueError, RuntimeError) as caught:
        error = caught
    done = {"error": str(error), "type": type(error).__name__, "rank": getattr(error, "rank", None)}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(done))


def launch(
    n: int, folder: Path, *arguments: Any, seconds: float, target: Any = line, after: Any = None
) -> list[dict[str, Any]]:
    """Run one process a rank; for each: how it ended (``code``, None where it had to be killed) and what it wrote.

    One that is meant to hang is left alone when the others have ended, or handed to ``after``, by its process number.
    """
    ranks = [CONTEXT.Process(target=target, args=(rank, n, str(folder), *arguments)) for rank in range(n)]
    for process in ranks:
        process.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until and (left := [rank for rank in range(n) if ranks[rank].exitcode is None]):
        if left == _hanging(folder, arguments):
            if after is not None:
                after(ranks[left[0]].pid)
            else:
                break
        time.sleep(0.02)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    found = [folder / f"rank{rank}.json" for rank in range(n)]
    seen = [json.loads(path.read_text()) if path.exists() else {} for path in found]
    return [{"code": code, **row} for code, row in zip(codes, seen, strict=True)]


def _hanging(folder: Path, arguments: tuple[Any, ...]) -> list[int]:
    """Who is meant to hang for ever, once it does."""
    kind, culprit = (*arguments, None)[:2]
    return (
        [culprit]
        if kind in ("stop", "stop the watch", "sleep", "hold", "close", "linger")
        and (folder / f"rank{culprit}.struck").exists()
        else []
    )


def free_port() -> int:
    import socket

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port
