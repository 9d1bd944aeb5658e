"""Waits of this process on process groups -> errors, at once, whichever thread is in them; or the end of the process.

Python cannot interrupt a wait of gloo. But when a wait runs out of time, gloo closes all connections of the group, as
their contents would be ambiguous from then on, and every other wait on the group raises (``UnboundBuffer::waitRecv``
calls ``context_->signalException`` in gloo/transport/tcp/unbound_buffer.cc). So a receive that nobody answers, and a
wait of a millisecond for it by the watching thread, end all waits of the main thread. NCCL has ``abort`` for that.
That call may itself wait for the device, so that a thread of its own makes it; it has not been run on a GPU.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import faulthandler
import os
import sys
import threading
from typing import Never

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from pararealize.control_characters import visible

__all__ = ["break_waits", "end_process"]

_aborting: set[int] = set()  # groups, by identity
_UNUSED_TAG = 2**31 - 9  # of the receives that end waits; no message has it


def break_waits() -> None:
    """Let every wait of this process on a process group raise, whichever thread stands in it."""
    for group in list(c10d._world.pg_map):
        with contextlib.suppress(RuntimeError, ValueError):  # a group that is gone already
            backends = dist.get_backend_config(group)
            if "nccl" in backends:
                _abort(group)
            if "gloo" in backends:
                others = [peer for peer in range(group.size()) if peer != group.rank()]
                any(_runs_out(group, peer) for peer in others)  # until one has


def _abort(group: dist.ProcessGroup) -> None:
    """Begin to abort a group of NCCL: whoever asks must go on to watch, and other groups must end beside it."""

    def abort() -> None:
        with contextlib.suppress(RuntimeError, ValueError):  # a group that is gone already
            group.abort()
        _aborting.discard(id(group))

    if id(group) not in _aborting:
        _aborting.add(id(group))
        threading.Thread(target=abort, name="pararealize-abort", daemon=True).start()


def _runs_out(group: dist.ProcessGroup, peer: int) -> bool:
    """Whether a wait for a rank ran out of time, and with that closed the connections to all ranks of the group.

    Where the connection to this one is closed already, the wait fails at once and closes no other.
    """
    try:
        group.recv([torch.empty(1)], peer, _UNUSED_TAG).wait(dt.timedelta(milliseconds=1))
    except RuntimeError as error:
        return "timed out" in str(error).lower()
    return False


def end_process(reason: str) -> Never:
    """End this process, whatever its threads do, after writing to stderr where they stand."""
    print(f"{visible(reason)}; its threads stand at", file=sys.stderr, flush=True)  # noqa: T201 (nobody is left to take an error)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a replaced stderr may be no file
        faulthandler.dump_traceback(sys.stderr)
    os._exit(1)
