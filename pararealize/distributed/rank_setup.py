"""Network, mesh -> RankSetup: what one rank of a distributed network is made of, whichever kind of network it is.

ProcessGroups     of the ranks of one network, of its copies     process_groups.py
agree             on partition, weights and versions             consistency.py
RankModules       the rank's own modules, with memory            rank_modules.py
PointToPoint      messages                                       messages/point_to_point.py
Watch             what ends all ranks when one fails             watchdog/watchdog.py
RankCalls         each call, announced before its messages       rank_calls.py
GradientSync      what is summed and averaged over ranks         gradients.py, tied_parameters.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.distributed.checkpoint.collective import gather_objects
from pararealize.distributed.watchdog.shared_calls import SharedCalls
from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import AgreedError, DistributedError

from .activity import Activity
from .consistency import FAULT, agree, agree_on_weights
from .gradients import GradientSync, ReplicaAverage, TiedSum, broadcast_tensors
from .messages.point_to_point import PointToPoint
from .meta_device import UndefinedTensors
from .module_modes import ModuleModes, kinds_by_name, sharers_of
from .partition import Partition, PartitionableNetwork, module_at, tensors_of
from .process_groups import ProcessGroups
from .rank_calls import RankCalls
from .rank_modules import RankModules
from .rank_parameters import RankParameters
from .tied_parameters import TiedParameters

__all__ = ["RankSetup", "agree_on_partition", "refuse_norms", "set_up_rank"]

_WHAT = "distribute the network"
_Partition = TypeVar("_Partition", bound=Partition)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RankSetup:
    """What one rank of a distributed network is made of.

    Attributes:
        partition: which rank owns what.
        rank: this one, in the parareal group.
        groups: of this rank.
        modules: the rank's own.
        channel: messages between the ranks of one network.
        calls: what this rank is called for, announced to the others.
        activity: tells the watchdog, and a recording, what the rank does.
        sync: sums and averages of gradients.
        other_names: for every key of the whole network's state dict, the other names of its tensor.
        undefined: tensors that still need values, of a network from the meta device.
        modes: of the rank's modules, which are compared with other ranks'.
        description: the rank and its network, for errors.
    """

    partition: Partition
    rank: int
    groups: ProcessGroups
    modules: RankModules
    channel: PointToPoint
    calls: RankCalls
    activity: Activity
    sync: GradientSync
    other_names: Mapping[str, tuple[str, ...]]
    undefined: UndefinedTensors
    modes: ModuleModes
    description: str

    def copied(self, memo: dict[int, Any]) -> RankSetup:
        """The same rank with deep copies of its modules, over the same connections; ``memo`` is that of the copy."""
        modules = self.modules.copied(memo)
        sync, undefined = self.sync.over(modules), self.undefined.over(modules.tree)
        modes = self.modes.over(modules.tree)
        return dataclasses.replace(
            self,
            modules=modules,
            activity=Activity(self.watch),
            sync=sync,
            modes=modes,
            calls=self.calls.over(sync.parameters, modes, undefined.fault),
            undefined=undefined,
        )

    @property
    def mesh(self) -> DeviceMesh:
        """The ranks of all copies of the network."""
        return self.groups.mesh

    @property
    def counted(self) -> Sequence[nn.Parameter]:
        """The parameters that a sum over the ranks of one network takes from this one."""
        return self.sync.parameters.counted

    @property
    def watch(self) -> Watch:
        """What ends all ranks when one fails."""
        return self.activity.watch

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Around whatever all ranks call: what happens to one of them is raised on all.

        Raises:
            DistributedError: another rank failed; the stage was closed, its process groups are destroyed, or this
                process was forked from the rank's.
            AgreedError: the rank takes requests in another thread; nothing has been sent.
        """
        if self.channel.serving_thread not in (None, threading.get_ident()):
            raise AgreedError(
                f"{name} was called on {self.description}, which takes requests in another thread; pass inputs to the "
                "server, and call the stage again when the block of stage.serve() is over"
            )
        with self.watch.step(name), self.groups.needed():
            yield
            self.channel.settle()

    @property
    def owns_head(self) -> bool:
        """Whether the network's output is computed here."""
        return self.rank == self.partition.ranks - 1


def agree_on_partition(
    net: PartitionableNetwork, groups: ProcessGroups, divide: Callable[[int], tuple[_Partition, Mapping[str, Any]]]
) -> _Partition:
    """Divide the network, once all ranks are known to divide it alike and to have the same weights.

    A rank that finds a fault still takes part in the comparison and brings the fault there. So every rank raises it,
    and none is left waiting for one that has raised.

    Args:
        net: the network.
        groups: of this rank.
        divide: the number of ranks -> which rank owns what, and facts by name that all ranks have to share; it raises
            :class:`~pararealize.errors.DistributedError` for what cannot be distributed.

    Raises:
        DistributedError: on every rank.
    """
    facts: dict[str, Any] = {"torch": torch.__version__, "Python": platform.python_version()}
    partition = None
    groups.watch.doing("dividing the network")
    try:
        partition, more = divide(dist.get_world_size(groups.parareal))
        refuse_norms(net, partition)
        facts.update(more)
    except DistributedError as fault:
        facts[FAULT] = str(fault)
    remedy = "start every rank from the same program"
    groups.watch.waiting("the others' plans of the network")
    agree(groups.everyone, facts, what=_WHAT, remedy=remedy, timeout=groups.limit)
    assert partition is not None
    groups.watch.doing("reading its weights")
    waiting = partial(groups.watch.waiting, "the others' weights")
    agree_on_weights(groups.everyone, net, what=_WHAT, timeout=groups.limit, waiting=waiting)
    return partition


def refuse_norms(net: PartitionableNetwork, partition: Partition) -> None:
    """Refuse batch norms that wait for other ranks, or of which several ranks would keep statistics."""
    synchronised = [name for name, module in net.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if synchronised:
        raise DistributedError(
            f"{len(synchronised)} synchronised batch norms ({synchronised[0]}) would wait for ranks that never come to "
            "them; build the model with nn.BatchNorm layers"
        )
    owners: dict[int, tuple[str, set[int]]] = {}
    for rank in range(partition.ranks):
        for part in partition.parts_of(rank):
            for path in tensors_of(net, part).modules:
                for inner, module in module_at(net, path).named_modules(prefix=path):
                    norm = isinstance(module, nn.modules.batchnorm._NormBase)
                    if norm and getattr(module, "running_mean", None) is not None:  # it keeps statistics
                        owners.setdefault(id(module), (inner, set()))[1].add(rank)
    shared = [f"{name} on ranks {sorted(ranks)}" for name, ranks in owners.values() if len(ranks) > 1]
    if shared:
        raise DistributedError(
            f"batch norms that several ranks share would each keep statistics of their own: {'; '.join(shared[:3])}; "
            "put the segments that share them on one rank with assignment=, or build the model with norms of their own"
        )


def set_up_rank(
    net: PartitionableNetwork,
    groups: ProcessGroups,
    partition: Partition,
    modules: RankModules,
    *,
    last_phases: Mapping[str, int],
    bucket_bytes: int,
    name: str,
    undefined: UndefinedTensors | None = None,
) -> RankSetup:
    """Connect a rank with the others, and give its copies of parameters the values that all holders begin with.

    Args:
        net: the network.
        groups: of this rank.
        partition: which rank owns what.
        modules: the rank's own.
        last_phases: for each of its parts, by name, the last backward call that reaches it.
        bucket_bytes: of the buckets in which gradients are averaged.
        name: of the network.
        undefined: tensors of it that need values yet.
    """
    rank = groups.rank
    watch = groups.watch
    watch.describe(_descriptions(groups, partition.labels))
    watch.doing("setting up the rank")
    channel = PointToPoint(
        groups.parareal,
        groups.control,
        groups.device,
        groups.limit,
        partition.labels.__getitem__,
        watch,
        directions=(groups.up, groups.down),
    )
    tied = TiedParameters.of(net, partition)
    parameters = RankParameters(rank, modules, tied, last_phases, averaged=groups.dp is not None)
    tied_sum = TiedSum(parameters.shared, channel.exchange)
    tied_sum.equalise()
    average = None
    if groups.dp is not None:
        watch.waiting("weights over dp")
        broadcast_tensors(groups.dp, [*modules.tree.parameters(), *modules.tree.buffers()])
        watch.doing("reading its weights")
        waiting = partial(watch.waiting, "weights over dp")
        agree_on_weights(groups.dp, modules.tree, what="copy weights over dp", timeout=groups.limit, waiting=waiting)
        average = ReplicaAverage(
            groups.dp,
            parameters.phases,
            bucket_bytes,
            lambda work: channel.wait(work, "averages over dp", rank),
        )
    undefined = UndefinedTensors(modules.tree) if undefined is None else undefined
    network, copies = _shared_calls(groups, watch)
    watch.waiting("the names of the others' modules")
    modes = ModuleModes(modules.tree, sharers_of(gather_objects(kinds_by_name(modules.tree), groups.control)))
    calls = RankCalls(
        channel, partition.tags, network, copies, parameters=parameters, modes=modes, fault=undefined.fault
    )
    channel.confirm = network.confirm  # not of what refers to the channel: groups end when the stage is let go of
    return RankSetup(
        partition=partition,
        rank=rank,
        groups=groups,
        modules=modules,
        channel=channel,
        calls=calls,
        activity=Activity(watch),
        sync=GradientSync(parameters, tied_sum, average),
        other_names=tied.other_names,
        undefined=undefined,
        modes=modes,
        description=f"{name}: {partition.labels[rank]} of {partition.ranks}",
    )


def _shared_calls(groups: ProcessGroups, watch: Watch) -> tuple[SharedCalls, SharedCalls | None]:
    """The calls of one network's ranks, and the steps of the ranks with the same parts of its copies."""
    everyone = dist.get_process_group_ranks(groups.everyone)

    def watched(group: dist.ProcessGroup) -> list[int]:
        return [everyone.index(rank) for rank in dist.get_process_group_ranks(group)]

    network = watch.announcements.add(
        f"network {watched(groups.parareal)}",
        watched(groups.parareal),
        what="run a step",
        remedy="give every rank of a parareal group the same inputs, mode and autocast, in the same order of calls",
    )
    if groups.dp is None:
        return network, None
    return network, watch.announcements.add(
        f"copies {watched(groups.dp)}",
        watched(groups.dp),
        what="average gradients",
        remedy="let every copy of the network make the same steps and train the same parameters; inference that only "
        "some of them do belongs within stage.no_sync()",
    )


def _descriptions(groups: ProcessGroups, labels: Sequence[str]) -> list[str]:
    """Of all ranks of the mesh, for errors."""
    mesh = groups.mesh
    rows = mesh.mesh if (mesh.mesh_dim_names or ("parareal",))[-1] == "parareal" else mesh.mesh.T
    rows = rows.reshape(-1, rows.shape[-1])
    who = {}
    for i, row in enumerate(rows.tolist(), start=1):
        replica = f"replica {i}, " if len(rows) > 1 else ""
        for k, rank in enumerate(row):
            who[rank] = f"rank {rank} ({replica}{labels[k].partition('(')[2]}"
    return [who[rank] for rank in sorted(who)]
