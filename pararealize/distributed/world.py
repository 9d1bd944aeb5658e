"""A network, or a rank's part of one -> who trains it together: sums, facts and faults shared over all of them.

An ordinary module is a team of one. A :class:`~pararealize.Stage` stands for all ranks of its mesh: those that hold one
network together, and those of its data-parallel copies. What is shared here is small and goes between CPUs.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pararealize.distributed.checkpoint.state import is_first, together
from pararealize.distributed.watchdog.watchdog import Watch

from .gradients import broadcast_tensors
from .process_groups import new_group
from .stage import Stage

__all__ = ["Team", "team_of"]

_teams: weakref.WeakKeyDictionary[nn.Module, Team] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The processes that train one network.

    Attributes:
        rank: this one, of ``world``.
        world: how many there are.
        replica: the copy of the network that this rank holds a part of, of ``replicas``.
        replicas: how many copies there are, each of which gets a share of every batch.
        is_first: whether this rank is the one that writes and reports.
        is_last: whether the network's output is known here.
        group: all of them, for objects and small tensors on the CPU; ``None`` for a team of one.
        watch: ends all of them when one fails.
        copies: the ranks that hold the same part, where there are several copies.
    """

    rank: int = 0
    world: int = 1
    replica: int = 0
    replicas: int = 1
    is_first: bool = True
    is_last: bool = True
    group: dist.ProcessGroup | None = None
    watch: Watch | None = None
    copies: dist.ProcessGroup | None = None

    @contextlib.contextmanager
    def waiting(self, what: str, *, works: bool = False) -> Iterator[None]:
        """Around what all ranks do: a rank that fails, dies or hangs in it ends the others, with an error naming it.

        Args:
            what: what is done or waited for.
            works: whether this rank does it, and the others wait.
        """
        if self.watch is None:
            yield
            return
        with self.watch.step():
            (self.watch.doing if works else self.watch.waiting)(what)
            yield

    def tell(self, error: BaseException) -> None:
        """Let the others know that this rank fails here."""
        if self.watch is not None:
            with contextlib.suppress(BaseException), self.watch.step():
                raise error

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of a small tensor on the CPU."""
        if self.group is None:
            return values
        summed = values.clone()
        with self.waiting("sums over all ranks"):
            dist.all_reduce(summed, group=self.group)
        return summed

    def gather(self, fact: Any) -> list[Any]:
        """What each rank says, on every rank."""
        if self.group is None:
            return [fact]
        found: list[Any] = [None] * self.world
        with self.waiting("facts of all ranks"):
            dist.all_gather_object(found, fact, group=self.group)
        return found

    def share(self, net: nn.Module, work: Callable[[], Any]) -> Any:
        """Do what the first rank alone does; a fault of its is raised on every rank, and its result known to all."""
        with self.waiting("files", works=self.is_first):
            result = together(net, lambda: work() if self.is_first else None)
        return next(told for first, told in self.gather((self.is_first, result)) if first)

    def even_buffers(self, net: nn.Module) -> None:
        """Give every copy the first copy's buffers (running statistics), which each has measured on its own batches."""
        if self.copies is not None:
            with self.waiting("buffers over dp"):
                broadcast_tensors(self.copies, list(net.buffers()))


def team_of(net: nn.Module) -> Team:
    """Who trains this network; all ranks of a mesh ask equally often."""
    if not isinstance(net, Stage):
        return Team()
    if net not in _teams:
        _teams[net] = _make(net)
    return _teams[net]


def _make(stage: Stage) -> Team:
    limit = stage._own.wire.timeout
    assert isinstance(limit, timedelta)
    mesh, watch = stage.mesh, stage._own.watch
    ranks = sorted(int(rank) for rank in mesh.mesh.flatten())
    several = "dp" in (mesh.mesh_dim_names or ()) and mesh["dp"].size() > 1
    return Team(
        rank=ranks.index(dist.get_rank()),
        world=len(ranks),
        replica=mesh.get_local_rank("dp") if several else 0,
        replicas=mesh["dp"].size() if several else 1,
        is_first=is_first(stage),
        is_last=stage._own.is_last,
        group=new_group(ranks, limit, "gloo") if len(ranks) > 1 else None,
        watch=watch if isinstance(watch, Watch) else None,
        copies=mesh.get_group("dp") if several else None,
    )
