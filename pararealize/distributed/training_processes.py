"""A network, or a rank's part of one -> the processes that train it together: sums, facts and faults of all of them.

An ordinary module is trained by one process. A :class:`~pararealize.Stage` stands for all ranks of its mesh: those that
hold one network together, and those of its data-parallel copies. What is shared here is small and goes between CPUs.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pararealize.distributed.checkpoint.collective import gather_objects, is_first, together
from pararealize.distributed.watchdog.watchdog import Watch

from .gradients import broadcast_tensors
from .meeting import meet
from .process_groups import end_groups, new_group
from .stage import Stage

__all__ = ["TrainingProcesses", "processes_of"]

# A group of its own is made when a network is trained for the first time, and kept as long as the network: making one
# is collective, so it must not depend on what a single rank has done before.
_processes: weakref.WeakKeyDictionary[nn.Module, TrainingProcesses] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProcesses:
    """The processes that train one network.

    Attributes:
        rank: this one, of ``world``.
        world: how many there are.
        replica: the copy of the network that this rank holds a part of, of ``replicas``.
        replicas: how many copies there are, each of which gets a share of every batch.
        is_first: whether this rank is the one that writes and reports.
        is_last: whether the network's output is known here.
        group: all of them, for objects and small tensors on the CPU; ``None`` for one process.
        watch: ends all of them when one fails.
        dp: the ranks that hold the same part, where there are several copies.
    """

    rank: int = 0
    world: int = 1
    replica: int = 0
    replicas: int = 1
    is_first: bool = True
    is_last: bool = True
    group: dist.ProcessGroup | None = None
    watch: Watch | None = None
    dp: dist.ProcessGroup | None = None

    @contextlib.contextmanager
    def watched(self, what: str, *, works: bool = False) -> Iterator[None]:
        """Around what all ranks do: a rank that fails, dies or hangs in it ends the others, with an error naming it.

        Args:
            what: what is done or waited for.
            works: whether this rank does it, and the others wait.
        """
        if self.watch is None:
            yield
            return
        with self.watch.step(what):
            (self.watch.doing if works else self.watch.waiting)(what)
            yield

    def report_failure(self, error: BaseException) -> None:
        """Let the others know that this rank fails here."""
        if self.watch is not None:
            with contextlib.suppress(BaseException), self.watch.step():
                raise error

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of a small tensor on the CPU."""
        if self.group is None:
            return values
        total = values.clone()
        with self.watched("sums over all ranks"):
            dist.all_reduce(total, group=self.group)
        return total

    def gather(self, fact: Any) -> list[Any]:
        """The facts of all ranks, on every rank."""
        with self.watched("facts of all ranks") if self.group is not None else contextlib.nullcontext():
            return gather_objects(fact, self.group)

    def on_first(self, net: nn.Module, work: Callable[[], Any]) -> Any:
        """Do what the first rank alone does; a fault of its is raised on every rank, and its result known to all."""
        with self.watched("files", works=self.is_first):
            result = together(net, lambda: work() if self.is_first else None)
        return next(result for is_first, result in self.gather((self.is_first, result)) if is_first)

    def broadcast_buffers(self, net: nn.Module) -> None:
        """Give every copy the first copy's buffers (running statistics), which each has measured on its own batches."""
        if self.dp is not None:
            with self.watched("buffers over dp"):
                broadcast_tensors(self.dp, list(net.buffers()))


def processes_of(net: nn.Module) -> TrainingProcesses:
    """The processes that train this network; all ranks of a mesh ask equally often."""
    if not isinstance(net, Stage):
        return TrainingProcesses()
    if net not in _processes:
        _processes[net] = processes = _of_stage(net)
        end = partial(end_groups, processes.group, everyone_does=False)
        weakref.finalize(net, net.rank_setup.watch.between_calls, end).atexit = False
    return _processes[net]


def _of_stage(stage: Stage) -> TrainingProcesses:
    mesh, limit = stage.mesh, stage.rank_setup.channel.timeout
    ranks = sorted(int(rank) for rank in mesh.mesh.flatten())
    several = "dp" in (mesh.mesh_dim_names or ()) and mesh["dp"].size() > 1
    group = None
    if len(ranks) > 1:
        with stage.collective_call("fit or evaluate"):
            meeting = meet(ranks, limit, what="train or evaluate", check=stage.rank_setup.watch.raise_known)
            group = new_group(meeting, ranks, limit, "gloo")
    return TrainingProcesses(
        rank=ranks.index(dist.get_rank()),
        world=len(ranks),
        replica=mesh.get_local_rank("dp") if several else 0,
        replicas=mesh["dp"].size() if several else 1,
        is_first=is_first(stage),
        is_last=stage.rank_setup.owns_head,
        group=group,
        watch=stage.rank_setup.watch,
        dp=mesh.get_group("dp") if several else None,
    )
