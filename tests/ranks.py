"""Functions run on several ranks: processes that speak gloo over a file, and never outlive their time."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 180
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = (  # what each rank would import for itself otherwise, most of it in its first conversion
    "torch.distributed", "torch.distributed.fsdp.sharded_grad_scaler", "torch._dynamo", "torch._inductor.sizevars",
    "torch.export._trace", "sympy.tensor.tensor", "hypothesis", "pytest",
    "pararealize",
)  # fmt: skip
CONTEXT.set_forkserver_preload(list(PRELOADED))


class RanksFailed(AssertionError):
    """What every rank says that did not end well."""


def on_ranks(size: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """``[function(*args) of rank 0, of rank 1, …]``, each in a process of its own; all are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [CONTEXT.Pipe(duplex=False) for _ in range(size)]
        processes = [
            CONTEXT.Process(target=_rank, args=(rank, size, f"{folder}/store", ours[1], function, args))
            for rank, ours in enumerate(ends)
        ]
        try:
            for process, (_, theirs) in zip(processes, ends, strict=True):
                process.start()
                theirs.close()
            return _collect([reader for reader, _ in ends], processes, time.monotonic() + seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(readers: list[Any], processes: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    faults: dict[int, str] = {}
    while len(results) + len(faults) < len(readers):
        left = deadline - time.monotonic()
        open_ = [reader for i, reader in enumerate(readers) if i not in results and i not in faults]
        ready = wait(open_, timeout=max(left, 0))
        if not ready:
            faults |= {i: "did not end in time" for i in range(len(readers)) if i not in results and i not in faults}
        for reader in ready:
            i = readers.index(reader)
            try:
                well, value = reader.recv()
            except EOFError:
                processes[i].join()
                well, value = False, f"died with exit code {processes[i].exitcode}"
            (results if well else faults)[i] = value
    if faults:
        raise RanksFailed("\n".join(f"rank {i}: {fault}" for i, fault in sorted(faults.items())))
    return [results[i] for i in range(len(readers))]


def _rank(rank: int, size: int, store: str, result: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("error")
    # torch.distributed.checkpoint of torch 2.10 asks its own tensors for it
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    try:
        limit = timedelta(seconds=SECONDS)
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=limit)
        value = function(*args)
        result.send((True, value))
    except BaseException:  # noqa: BLE001 - the parent reports it
        result.send((False, traceback.format_exc()))
        result.close()
        os._exit(1)  # without waiting for the others
    if dist.is_initialized():
        dist.destroy_process_group()
