"""What ranks issue to their process groups -> whether NCCL would end it: the order of messages, without a GPU.

NCCL ignores tags. It runs what a rank issues to one communicator in the order of issue, one after the other, and a send
ends when the receive that stands at the same place in the other rank's queue takes it. Which operations share a queue:

    a pair   messages that are no batch have a communicator for each pair of ranks and group, for both directions
    a group  where torch makes communicators eagerly (``device_id``), all of a group's messages share one

Collective calls and batches go through the group's communicator. Whatever a rank issues waits, too, for all that its
stream was told to wait for before. The log is taken of a run over gloo, which matches by tags and gets through; the
queues are then emulated from the logs of all ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d


@dataclasses.dataclass(frozen=True)
class Operation:
    """A send, a receive, or a call of several ranks.

    Attributes:
        kind: ``"send"``, ``"receive"``, or the name of the call.
        group: the group's name.
        ranks: of the processes that take part, the other one alone for a message.
        label: what both ends have to have alike: shape, element type, tag.
        waited: how many waits stand before it.
    """

    kind: str
    group: str
    ranks: tuple[int, ...]
    label: Any
    waited: int

    @property
    def is_message(self) -> bool:
        return self.kind in ("send", "receive")


@dataclasses.dataclass
class Log:
    """What one process has issued, and the numbers of what its stream was told to wait for."""

    rank: int = 0
    operations: list[Operation] = dataclasses.field(default_factory=list)
    waits: list[int] = dataclasses.field(default_factory=list)

    def add(self, kind: str, group: dist.ProcessGroup, ranks: Sequence[int], label: Any) -> int:
        name = c10d._world.pg_names[group]
        self.operations.append(Operation(kind, name, tuple(ranks), label, len(self.waits)))
        return len(self.operations) - 1


class LoggedWork:
    """A work that writes down when it is waited for."""

    def __init__(self, work: Any, log: Log, number: int) -> None:
        self._work, self._log, self._number = work, log, number

    def wait(self, *args: Any) -> Any:
        self._log.waits.append(self._number)
        return self._work.wait(*args)

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())


@contextlib.contextmanager
def logged_as_nccl() -> Iterator[Log]:
    """Networks that are distributed within this take their messages for NCCL's; what they issue is logged."""
    log = Log(dist.get_rank())
    calls = {name: getattr(dist, name) for name in ("isend", "irecv", "broadcast", "all_reduce", "batch_isend_irecv")}

    def form(tensor: torch.Tensor) -> tuple[Any, ...]:
        return tuple(tensor.shape), str(tensor.dtype)

    def isend(tensor: torch.Tensor, dst: int, group: Any, tag: int = 0) -> Any:
        number = log.add("send", group, (dst,), (form(tensor), tag))
        return LoggedWork(calls["isend"](tensor, dst, group, tag), log, number)

    def irecv(tensor: torch.Tensor, src: int, group: Any, tag: int = 0) -> Any:
        number = log.add("receive", group, (src,), (form(tensor), tag))
        return LoggedWork(calls["irecv"](tensor, src, group, tag), log, number)

    def collective(name: str) -> Any:
        def call(tensor: torch.Tensor, *args: Any, group: Any = None, async_op: bool = False, **options: Any) -> Any:
            number = log.add(name, group, dist.get_process_group_ranks(group), (form(tensor), options.get("src")))
            work = LoggedWork(calls[name](tensor, *args, group=group, async_op=True, **options), log, number)
            return work if async_op else work.wait()

        return call

    def batch(operations: list[dist.P2POp]) -> list[Any]:
        group = operations[0].group
        assert group is not None
        ranks = sorted({dist.get_rank(), *(operation.peer for operation in operations)})
        number = log.add("batch", group, ranks, form(operations[0].tensor))
        with mock.patch.multiple(dist, isend=calls["isend"], irecv=calls["irecv"]):
            real = [
                (calls["isend"] if operation.op is isend else calls["irecv"])(
                    operation.tensor, operation.peer, operation.group, operation.tag
                )
                for operation in operations
            ]
        return [LoggedWork(work, log, number) for work in real]

    class Listed:  # dist.P2POp accepts torch's own functions alone
        def __init__(self, op: Any, tensor: torch.Tensor, peer: int, group: Any = None, tag: int = 0) -> None:
            self.op, self.tensor, self.peer, self.group, self.tag = op, tensor, peer, group, tag

    with contextlib.ExitStack() as stack:
        for module in ("messages.point_to_point", "process_groups"):
            name = f"pararealize.distributed.{module}.matches_by_tag"
            stack.enter_context(mock.patch(name, return_value=False))
        doubles = {"broadcast": collective("broadcast"), "all_reduce": collective("all_reduce")}
        doubles |= {"isend": isend, "irecv": irecv, "batch_isend_irecv": batch, "P2POp": Listed}
        stack.enter_context(mock.patch.multiple(dist, **doubles))
        yield log


def fault_of(logs: Sequence[Log], *, by: str = "pair") -> str:
    """Where NCCL would stand for ever, or take one message for another; empty where it gets through.

    Args:
        logs: of all ranks.
        by: what shares a queue, ``"pair"`` or ``"group"``.
    """
    by_rank = {log.rank: log for log in logs}
    queues: dict[tuple[int, Any], list[int]] = {}
    for log in logs:
        for number, operation in enumerate(log.operations):
            queues.setdefault((log.rank, _queue(log.rank, operation, by)), []).append(number)
    done: dict[int, set[int]] = {log.rank: set() for log in logs}
    began = dict.fromkeys(queues, 0)  # the place of each queue's head

    def head(rank: int, queue: Any) -> Operation | None:
        numbers = queues.get((rank, queue), [])
        if began.get((rank, queue), 0) >= len(numbers):
            return None
        operation = by_rank[rank].operations[numbers[began[rank, queue]]]
        return operation if done[rank].issuperset(by_rank[rank].waits[: operation.waited]) else None

    goes_on = True
    while goes_on:
        goes_on = False
        for rank, queue in list(queues):
            operation = head(rank, queue)
            if operation is None:
                continue
            ranks = (rank, *operation.ranks) if operation.is_message else operation.ranks
            heads = {other: head(other, queue) for other in ranks}
            if any(other is None for other in heads.values()):
                continue
            if fault := _mismatch(rank, operation, heads):
                if operation.is_message and by == "pair":
                    return fault
                continue  # another one of the group has its turn first
            for other in ranks:
                done[other].add(queues[other, queue][began[other, queue]])
                began[other, queue] += 1
            goes_on = True
    rest = [
        f"rank {rank} at {by_rank[rank].operations[numbers[began[rank, queue]]]}"
        for (rank, queue), numbers in queues.items()
        if began[rank, queue] < len(numbers)
    ]
    return "; ".join(rest)


def _queue(rank: int, operation: Operation, by: str) -> Any:
    if operation.is_message and by == "pair":
        return operation.group, tuple(sorted((rank, *operation.ranks)))
    return operation.group, "all"


def _mismatch(rank: int, operation: Operation, heads: dict[int, Any]) -> str:
    """What does not fit at the heads of the queues of those who take part."""
    for other, theirs in heads.items():
        if other == rank:
            continue
        fits = theirs.label == operation.label
        if operation.is_message:
            fits = fits and theirs.ranks == (rank,) and {theirs.kind, operation.kind} == {"send", "receive"}
        else:
            fits = fits and (theirs.kind, theirs.ranks) == (operation.kind, operation.ranks)
        if not fits:
            return f"rank {rank} is at {operation}, rank {other} at {theirs}"
    return ""
