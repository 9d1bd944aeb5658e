"""Tensors and objects of one rank -> the same on other ranks of its group; every wait is bounded and can be judged.

Tensors go through groups of the mesh's backend (NCCL or gloo), objects through a gloo group of the same ranks. Before
each wait the watchdog hears for what and for which rank it is, so that it can name the rank at fault.

On a GPU a wait holds up a stream and not the host. So the watchdog is given what the stream waits for, looks itself
whether it has come, and :meth:`PointToPoint.settle` keeps the host in the call until the device has done all of it:
what NCCL leaves in memory after it was aborted is never returned.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import DistributedError

from .formats import in_memory_order

__all__ = ["PointToPoint", "matches_by_tag"]

_EXCHANGE_TAG = (1 << 30) + 2  # of tensors that ranks exchange; no message between parts has it
_yield: Callable[[], object] = getattr(os, "sched_yield", lambda: None)  # of a thread, to others on its core
_POLL = 5e-5  # seconds between two looks at the device


def matches_by_tag(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether messages are matched by tag, as gloo does; NCCL matches those of two ranks by their order alone."""
    return "gloo" in dist.get_backend_config(group) and device.type == "cpu"


class PointToPoint:
    """What one rank sends to others of its group, and receives from them.

    Args:
        group: of the ranks, for collective calls on tensors.
        control: of the same ranks, for objects.
        device: where the tensors of messages are.
        timeout: of every wait.
        who: what to call a rank of the group in an error.
        watch: hears of every wait before it begins.
        directions: groups of the same ranks for messages to ranks of a higher and of a lower number; ``group`` for both
            when left out.

    Attributes:
        confirm: called before every collective call: waits until all ranks are known to be at the same step.
        keeps_tags_apart: whether a message fits only a receive with its tag.
        failure: how a step failed whose messages may be under way still, so that nothing more can be sent.
        size: how many ranks there are.
        copies: how many deep copies of the rank's modules use this channel beside them.
        serving_thread: the one thread that makes calls while the rank takes requests; ``None`` where any may.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        control: dist.ProcessGroup,
        device: torch.device,
        timeout: timedelta,
        who: Callable[[int], str],
        watch: Watch,
        directions: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None,
    ) -> None:
        self.group, self.control, self.device, self.timeout = group, control, device, timeout
        self.who, self.watch = who, watch
        self.confirm: Callable[[], None] = lambda: None
        self._up, self._down = directions or (group, group)
        self.keeps_tags_apart = matches_by_tag(group, device)
        self.rank: int = dist.get_rank(group)
        self._global_ranks = dist.get_process_group_ranks(group)
        self.size = len(self._global_ranks)
        self._waits_on_host = device.type == "cpu"
        self.failure, self.copies = "", 0
        self.serving_thread: int | None = None
        self._unfinished: list[tuple[str, int, dist.Work, torch.Tensor]] = []

    # Tensors ----------------------------------------------------------------------------------------------------------

    def isend(self, name: str, tensor: torch.Tensor, to: int, tag: int) -> None:
        """Begin to send a tensor; it must not change until :meth:`flush`, which lets go of its memory."""
        with self._typed_errors(name, to, "sending"):  # its connection may have been closed since the last message
            group = self._up if to > self.rank else self._down
            work = _begun(dist.isend(in_memory_order(tensor), self._global_ranks[to], group, tag))
        self._unfinished.append((name, to, work, tensor))
        self.watch.sent(to)
        if self._waits_on_host:
            # gloo's own thread sends what the receiver has asked for since this one last waited; where it shares the
            # core, it would not run before this thread waits again, behind all that is computed next
            _yield()

    def irecv(self, tensor: torch.Tensor, peer: int, tag: int) -> dist.Work:
        """Begin to receive a tensor; it must not be read before :meth:`wait_for_message`."""
        with self._typed_errors("a message", peer, "waiting for"):
            group = self._up if peer < self.rank else self._down
            return _begun(dist.irecv(in_memory_order(tensor), self._global_ranks[peer], group, tag))

    def wait_for_message(self, work: dist.Work, name: str, peer: int) -> None:
        """Wait for what :meth:`irecv` began, and count it: the watchdog compares what was sent with what has come."""
        self.wait(work, name, peer, counts=True)

    def flush(self) -> None:
        """Wait until every tensor that was sent has left, and let go of it."""
        while self._unfinished:
            name, peer, work, _ = self._unfinished[0]
            self.wait(work, name, peer, "sending")
            self._unfinished.pop(0)

    def forget(self) -> None:
        """Let go of the tensors of a step that failed."""
        self._unfinished.clear()
        self.watch.open_works.clear()

    def wait(self, work: dist.Work, name: str, peer: int, verb: str = "waiting for", *, counts: bool = False) -> None:
        """Wait for a message or a collective of this group that involves rank ``peer``.

        Args:
            work: what is waited for.
            name: what to call it in errors.
            peer: the rank.
            verb: what this rank does with it.
            counts: whether it is a message that counts as taken when it has come.
        """
        if self._waits_on_host:
            with self._bounded(name, peer, verb):
                work.wait(self.timeout)
            if counts:
                self.watch.took(peer)
            return
        with self._typed_errors(name, peer, verb):
            work.wait()  # it makes the current stream wait, and takes no time-out
        self.watch.wait_on_device(work, name, peer, counts=counts)

    def settle(self) -> None:
        """Return once the device has done all that this call has asked of it; on a CPU, where waits block, at once.

        Raises:
            RankError: another rank has failed meanwhile. The device's waits are aborted then, and what was computed
                from them is of no use.
        """
        if self._waits_on_host:
            return
        done = torch.get_device_module(self.device).Event()
        done.record()
        while not done.query():
            self.watch.raise_known()
            time.sleep(_POLL)
        self.watch.raise_known()
        self.watch.open_works.clear()

    def keep(self, name: str, peer: int, work: dist.Work, tensor: torch.Tensor) -> None:
        """Keep a tensor that a collective call reads until :meth:`flush`, as those are that are sent."""
        self._unfinished.append((name, peer, work, tensor))

    def broadcast(self, tensor: torch.Tensor, owner: int) -> dist.Work:
        """Begin to give a tensor of one rank to all others, which pass the memory for it."""
        self.confirm()
        source = self._global_ranks[owner]
        with self._typed_errors("what all ranks get", owner, "waiting for"):
            return _begun(dist.broadcast(in_memory_order(tensor), source, group=self.group, async_op=True))

    def all_reduce(
        self, name: str, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
    ) -> torch.Tensor:
        """The tensor, after all ranks have summed theirs in place."""
        self.confirm()
        with self._typed_errors(name, self.rank, "waiting for"):
            work = _begun(dist.all_reduce(tensor, operation, group=self.group, async_op=True))
        self.wait(work, name, self.rank)
        return tensor

    def exchange(self, tensor: torch.Tensor, ranks: tuple[int, ...]) -> list[torch.Tensor]:
        """What each of these ranks has, in their order; this rank is one of them.

        All sends and receives go as one batch: over NCCL each pair of ranks is one queue, and a receive that waits in
        front of a send on both sides would hold up both for ever.
        """
        self.confirm()
        tensors = {rank: tensor if rank == self.rank else torch.empty_like(tensor) for rank in ranks}
        others = [rank for rank in ranks if rank != self.rank]
        operations = [
            dist.P2POp(operation, value, self._global_ranks[rank], self.group, tag=_EXCHANGE_TAG)
            for rank in others
            for operation, value in ((dist.isend, tensor), (dist.irecv, tensors[rank]))
        ]
        with self._typed_errors("what ranks share", others[0], "waiting for"):
            works = dist.batch_isend_irecv(operations)
        for work in works:
            self.wait(work, "what ranks share", others[0])
        return [tensors[rank] for rank in ranks]

    # Objects ----------------------------------------------------------------------------------------------------------

    def send_object(self, name: str, value: Any, to: int) -> None:
        """Send an object, and wait until it has left: until the other rank asks for it."""
        with self._bounded(name, to, "sending"):
            dist.send_object_list([value], dst=self._global_ranks[to], group=self.control)

    def receive_object(self, name: str, peer: int) -> Any:
        """Wait for an object."""
        values: list[Any] = [None]
        with self._bounded(name, peer, "waiting for"):
            dist.recv_object_list(values, src=self._global_ranks[peer], group=self.control)
        return values[0]

    def broadcast_object(self, name: str, value: Any, owner: int) -> Any:
        """An object of one rank, on all of them."""
        self.confirm()
        return self.hand_round_object(name, value, owner)

    # Through the CPU's memory, in the order in which all ranks call it -----------------------------------------------

    def hand_round(self, name: str, tensor: torch.Tensor, owner: int) -> None:
        """Give a dense tensor of one rank to all others, which pass the memory for it."""
        with self._bounded(name, owner, "waiting for"):
            dist.broadcast(in_memory_order(tensor), self._global_ranks[owner], group=self.control)

    def hand_round_object(self, name: str, value: Any, owner: int) -> Any:
        """The same of an object; no rank waits for more than the message."""
        values = [value]
        with self._bounded(name, owner, "waiting for"):
            dist.broadcast_object_list(values, src=self._global_ranks[owner], group=self.control)
        return values[0]

    def hand_over(self, name: str, tensor: torch.Tensor, to: int) -> None:
        """Send a dense tensor to one rank, and wait until it has left."""
        with self._bounded(name, to, "sending"):
            dist.send(in_memory_order(tensor), self._global_ranks[to], group=self.control)

    def take_over(self, name: str, tensor: torch.Tensor, peer: int) -> None:
        """Wait for a dense tensor of one rank."""
        with self._bounded(name, peer, "waiting for"):
            dist.recv(in_memory_order(tensor), self._global_ranks[peer], group=self.control)

    @contextlib.contextmanager
    def _bounded(self, name: str, peer: int, verb: str) -> Iterator[None]:
        self.watch.waiting(name, peer)
        with self._typed_errors(name, peer, verb):
            yield

    @contextlib.contextmanager
    def _typed_errors(self, name: str, peer: int, verb: str) -> Iterator[None]:
        try:
            yield
        except DistributedError:
            raise
        except RuntimeError as error:
            preposition = "to" if verb == "sending" else "from"
            raise DistributedError(
                f"{self.who(self.rank)} failed {verb} {name} {preposition} {self.who(peer)} within "
                f"{self.timeout.total_seconds():g} s: {str(error).splitlines()[0]}; look at that rank's own error, or "
                "pass distribute(..., timeout=) more seconds where a step takes longer"
            ) from error


def _begun(work: dist.Work | None) -> dist.Work:
    """What torch has begun: only a rank that is not in the group gets nothing."""
    assert work is not None
    return work
