"""A measurement that several processes make together -> its results, one by one, as the first rank gives them."""

from __future__ import annotations

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

__all__ = ["Measured", "on_ranks"]

Measured: TypeAlias = tuple[str, str, float]  # way, quantity, value
Measurement: TypeAlias = "Callable[[dict[str, Any]], Iterator[Measured]]"
_TOLD_EVERY = 10.0  # seconds


def on_ranks(
    measurement: Measurement, ranks: int, asked: dict[str, Any], shown: Callable[[Measured], str]
) -> Iterator[Measured]:
    """Run it in so many processes of one thread each, joined by gloo; now and then show a result on stderr.

    Args:
        measurement: a function of a module, the same on all ranks.
        ranks: how many processes.
        asked: what the function is told.
        shown: a result as a line.
    """
    report: Any = multiprocessing.get_context("spawn").Queue()
    arguments = (ranks, _free_port(), measurement, asked, report)
    started = multiprocessing.start_processes(_run, arguments, nprocs=ranks, join=False, start_method="spawn")
    done, told = False, time.monotonic()
    while not done or not report.empty():
        done = done or started.join(timeout=0.1)
        while (found := _next(report)) is not None:
            yield found
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                print(shown(found), file=sys.stderr, flush=True)


def _run(rank: int, ranks: int, port: int, measurement: Measurement, asked: dict[str, Any], report: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(minutes=5)
    )
    try:
        for measured in measurement(asked):
            if rank == 0:
                report.put(measured)
    finally:
        distributed.destroy_process_group()


def _next(report: Any) -> Any:
    try:
        return report.get(timeout=0.2)
    except queue.Empty:
        return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
