"""A function that measures, on several ranks at once -> its measurements, one by one, as rank 0 yields them."""

from __future__ import annotations

import os
import queue
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.multiprocessing as multiprocessing
from torch import distributed

__all__ = ["Case", "Measurement", "free_port", "on_ranks"]

Measurement: TypeAlias = tuple[str, str, float]  # way, quantity, value
Case: TypeAlias = dict[str, Any]
PROGRESS_EVERY = 10.0  # seconds between two lines


def on_ranks(
    measure: Callable[[Case], Iterator[Measurement]],
    ranks: int,
    case: Case,
    line: Callable[[Measurement], str],
    *,
    bind: bool = False,
) -> Iterator[Measurement]:
    """Run ``measure`` in processes of one thread each, in one gloo group; now and then print a line on stderr.

    Args:
        measure: a function of a module, the same on all ranks.
        ranks: how many processes.
        case: its argument.
        line: a measurement as a line of progress.
        bind: whether each process stays on a core of its own, as launchers of MPI have it: otherwise a thread that
            receives may be put behind the computing one of the other process, while its own core is idle.
    """
    report: Any = multiprocessing.get_context("spawn").Queue()
    arguments = (ranks, free_port(), measure, case, report, bind)
    processes = multiprocessing.start_processes(_run, arguments, nprocs=ranks, join=False, start_method="spawn")
    done, last_line = False, time.monotonic()
    while not done or not report.empty():
        done = done or processes.join(timeout=0.1)
        while (measurement := _next(report)) is not None:
            yield measurement
            if time.monotonic() - last_line > PROGRESS_EVERY:
                last_line = time.monotonic()
                print(line(measurement), file=sys.stderr, flush=True)


def _run(
    rank: int,
    ranks: int,
    port: int,
    measure: Callable[[Case], Iterator[Measurement]],
    case: Case,
    report: Any,
    bind: bool,
) -> None:
    if bind:  # before there are other threads, which inherit it
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(minutes=5)
    )
    try:
        for measurement in measure(case):
            if rank == 0:
                report.put(measurement)
    finally:
        distributed.destroy_process_group()


def _next(report: Any) -> Any:
    try:
        return report.get(timeout=0.2)
    except queue.Empty:
        return None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
