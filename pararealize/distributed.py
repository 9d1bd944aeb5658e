"""PararealModule, DeviceMesh -> Stage: each rank with its own segments, the ranks agreed before the first message.

groups      of the ranks of one network, of its copies      here
agree       plan, weights, versions                         agree.py
Layout      who owns what, what crosses                     layout.py
share_of    a rank's own modules, with memory               materialise.py
Wire        messages                                        wire.py
Stage       a module with a step                            stage.py, step.py
"""

from __future__ import annotations

import dataclasses
import platform
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from .agree import FAULT, agree, digests
from .errors import DistributedError
from .gradients import Replicas, Sharers, broadcast_tensors
from .layout import Layout, assign, module_at, tensors_of
from .materialise import Undefined, draw, share_of
from .recompute import recomputed
from .stage import Stage, Ties
from .step import Own
from .watch import Watch
from .window import Piece
from .wire import Wire

if TYPE_CHECKING:
    from .emit import PararealModule

__all__ = ["distribute"]

_WHAT = "distribute the network"
_SEED = "call torch.manual_seed(...) with one seed on all ranks before the model is made, or load one checkpoint on all"


def distribute(
    net: PararealModule,
    mesh: DeviceMesh,
    *,
    assignment: Sequence[int] | None = None,
    timeout: timedelta | float = 600.0,
    checkpoint_activations: bool = False,
    seed: int = 0,
    bucket_bytes: int = 25 << 20,
) -> Stage:
    """What :meth:`PararealModule.distribute` does."""
    limit = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
    groups = _Groups.of(mesh, limit)
    facts: dict[str, Any] = {"torch": torch.__version__, "Python": platform.python_version()}
    layout = None
    try:
        layout = _layout(net, groups, assignment)
        facts.update(_facts(net, layout, checkpoint_activations, seed, bucket_bytes))
    except DistributedError as fault:
        facts[FAULT] = str(fault)
    agree(groups.everyone, facts, what=_WHAT, remedy="start every rank from the same program", timeout=limit)
    assert layout is not None
    agree(groups.control, _weights(net), what=_WHAT, remedy=_SEED, timeout=limit)
    names = layout.names(groups.rank)
    share = share_of(net, names, groups.device, {name: part.target for name, part in layout.parts.items()})
    meta = any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    undefined = draw(share, net, names, groups.device, seed) if meta else Undefined({})
    describe = _describer(net, layout)
    watch = _watch(mesh, groups, describe)
    wire = Wire(groups.parareal, groups.control, groups.device, limit, describe, watch)
    calls: dict[str, Callable[..., Any]] = dict(share.parts)
    if checkpoint_activations:
        for name, part in share.parts.items():
            if name[0] == "g" and isinstance(part, Piece):
                calls[name] = recomputed(share.tree, part)
        for name in names:
            if layout.parts[name].target.startswith("segments."):
                calls[name] = calls[layout.parts[name].target.removeprefix("segments.")]
    own = Own(layout, groups.rank, net.plan.n, net.plan.source, share.parts, calls, wire, watch)
    ties = _ties(net, own, share.tree, groups, undefined, bucket_bytes, limit)
    stage = Stage(share.tree, own, ties, f"{net.plan.model}: {describe(groups.rank)} of {layout.ranks}", mesh)
    stage.plan = net.plan
    weakref.finalize(stage, watch.close).atexit = False  # at exit, the watch itself looks at how the script ended
    return stage


# Groups --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """Groups of this rank with a time-out of their own.

    Attributes:
        everyone: of all ranks of the mesh, for objects.
        parareal: of the ranks of one network, for tensors.
        control: of the same ranks, for objects.
        dp: of the ranks with the same segments, where there are several.
        rank: in ``parareal``.
        device: of this rank.
    """

    everyone: dist.ProcessGroup
    parareal: dist.ProcessGroup
    control: dist.ProcessGroup
    dp: dist.ProcessGroup | None
    rank: int
    device: torch.device
    limit: timedelta

    @classmethod
    def of(cls, mesh: DeviceMesh, limit: timedelta) -> _Groups:
        """Make them, after checking that the mesh can be used."""
        _check_mesh(mesh)
        names = mesh.mesh_dim_names or ("parareal",)
        row = dist.get_process_group_ranks(mesh.get_group("parareal") if mesh.ndim > 1 else mesh.get_group())
        every = sorted(int(rank) for rank in mesh.mesh.flatten())
        everyone = new_group(every, limit, "gloo")
        control = everyone if len(row) == len(every) else new_group(row, limit, "gloo")
        parareal = new_group(row, limit)
        dp = None
        if "dp" in names and mesh.size(names.index("dp")) > 1:
            dp = new_group(dist.get_process_group_ranks(mesh.get_group("dp")), limit)
        kind = mesh.device_type
        device = (
            torch.device("cpu") if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())
        )
        return cls(
            everyone=everyone,
            parareal=parareal,
            control=control,
            dp=dp,
            rank=dist.get_rank(parareal),
            device=device,
            limit=limit,
        )


def new_group(ranks: Sequence[int], limit: timedelta, backend: str | None = None) -> dist.ProcessGroup:
    """A group that its own ranks alone have to ask for; all ranks have to ask for equally many."""
    try:
        group = dist.new_group(ranks=list(ranks), timeout=limit, backend=backend, use_local_synchronization=True)
    except RuntimeError as error:
        raise DistributedError(
            f"rank {dist.get_rank()} waited for the ranks {list(ranks)} to distribute the network, and not all of them "
            f"did within {limit.total_seconds():g} s: {str(error).splitlines()[0]}; every rank of the mesh has to call "
            "distribute equally often"
        ) from error
    assert isinstance(group, dist.ProcessGroup)
    return group


def _check_mesh(mesh: DeviceMesh) -> None:
    """Refuse what is no mesh of one network's ranks, perhaps in several copies."""
    if not dist.is_available() or not dist.is_initialized():
        raise DistributedError(
            "torch.distributed is not initialised; start with torchrun --nproc-per-node N script.py, and call "
            "init_device_mesh(...) or torch.distributed.init_process_group() first"
        )
    if not isinstance(mesh, DeviceMesh):
        raise DistributedError(
            f"mesh is {type(mesh).__name__}; pass torch.distributed.device_mesh.init_device_mesh('cpu' or 'cuda', "
            "(ranks,), mesh_dim_names=('parareal',))"
        )
    names = mesh.mesh_dim_names
    if mesh.ndim > 2 or (names is None and mesh.ndim > 1) or (names is not None and not _names_fit(names)):
        shape = "×".join(map(str, mesh.mesh.shape))
        raise DistributedError(
            f"the mesh has shape {shape} and dimensions {names or 'without names'}; pass one with "
            "mesh_dim_names=('parareal',) or ('dp', 'parareal')"
        )
    if mesh.get_coordinate() is None:
        raise DistributedError(
            f"rank {dist.get_rank()} is not in the mesh {mesh.mesh.tolist()}; call distribute in it only"
        )
    if mesh.device_type != "cpu" and not torch.get_device_module(mesh.device_type).is_available():
        raise DistributedError(f"the mesh is of {mesh.device_type!r} devices, and this rank has none")
    group = mesh.get_group("parareal") if mesh.ndim > 1 else mesh.get_group()
    backend = dist.get_backend(group)
    if mesh.device_type != "cpu" and backend == "gloo":
        raise DistributedError(
            f"the mesh is of {mesh.device_type!r} devices, and its backend is gloo, which sends between CPUs only; "
            "call torch.distributed.init_process_group() without a backend, or with 'nccl'"
        )


def _names_fit(names: tuple[str, ...]) -> bool:
    return names == ("parareal",) or set(names) == {"dp", "parareal"}


# What ranks agree on -------------------------------------------------------------------------------------------------


def _layout(net: PararealModule, groups: _Groups, assignment: Sequence[int] | None) -> Layout:
    """Who owns what, after refusing what cannot be distributed."""
    if net._devices is not None:
        raise DistributedError(
            "the network was converted with devices=[...], for one process; leave devices out: the mesh says where "
            "each segment runs"
        )
    synchronised = [name for name, module in net.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if synchronised:
        raise DistributedError(
            f"{len(synchronised)} synchronised batch norms ({synchronised[0]}) would wait for ranks that never come to "
            "them; build the model with nn.BatchNorm layers"
        )
    layout = Layout.of(net, assign(net.plan, dist.get_world_size(groups.parareal), assignment))
    owners: dict[int, tuple[str, set[int]]] = {}
    for rank in range(layout.ranks):
        for name in layout.names(rank):
            for path in tensors_of(net, name)[0]:
                for inner, module in module_at(net, path).named_modules(prefix=path):
                    if _keeps_statistics(module):
                        owners.setdefault(id(module), (inner, set()))[1].add(rank)
    shared = [f"{name} on ranks {sorted(ranks)}" for name, ranks in owners.values() if len(ranks) > 1]
    if shared:
        raise DistributedError(
            f"batch norms that several ranks share would each keep statistics of their own: {'; '.join(shared[:3])}; "
            "put the segments that share them on one rank with assignment=, or build the model with norms of their own"
        )
    return layout


def _keeps_statistics(module: nn.Module) -> bool:
    normalises = isinstance(module, nn.modules.batchnorm._NormBase)
    return normalises and getattr(module, "running_mean", None) is not None


def _facts(net: PararealModule, layout: Layout, checkpoints: bool, seed: int, size: int) -> dict[str, Any]:
    plan = net.plan
    return {
        "the plan's fingerprint": plan.fingerprint,
        "n": plan.n,
        "where segments begin": [segment.first_block for segment in plan.segments],
        "coarse blocks": [row.kind for row in plan.coarse_blocks],
        "what adapters read": plan.source,
        "segments of the ranks": layout.runs,
        "mode": "train" if net.training else "eval",
        "seed": seed,
        "checkpoint_activations": checkpoints,
        "bucket_bytes": size,
        "the trained parameters": sum(parameter.requires_grad for parameter in net.parameters()),
    }


def _weights(module: nn.Module) -> dict[str, str]:
    return {f"the digest of {name}": digest for name, digest in digests(module).items()}


def _describer(net: PararealModule, layout: Layout) -> Callable[[int], str]:
    def describe(rank: int) -> str:
        first, last = layout.runs[rank]
        blocks = f"{net.plan.segments[first - 1].first_block} to {net.plan.segments[last - 1].last_block}"
        which = f"segment {first}" if first == last else f"segments {first} to {last}"
        return f"{rank} ({which}, {blocks})"

    names = [describe(rank) for rank in range(layout.ranks)]
    return names.__getitem__


# Parameters that others hold too -------------------------------------------------------------------------------------


def _ties(
    net: PararealModule,
    own: Own,
    tree: nn.Module,
    groups: _Groups,
    undefined: Undefined,
    size: int,
    limit: timedelta,
) -> Ties:
    """Groups of ranks that share parameters, averages over dp, and equal values everywhere to begin with."""
    aliases, holders = _holders(net, own.layout)
    named = dict(tree.named_parameters(remove_duplicate=False))
    mine: dict[tuple[int, ...], dict[int, nn.Parameter]] = {}
    counted = {id(parameter) for parameter in named.values()}
    for name, parameter in named.items():
        ranks = holders.get(name, ())
        if len(ranks) > 1 and own.rank in ranks:
            mine.setdefault(ranks, {})[id(parameter)] = parameter
            if own.rank != ranks[0]:
                counted.discard(id(parameter))
    sharers = Sharers(
        {ranks: _in_order(list(found.values()), named, aliases) for ranks, found in sorted(mine.items())},
        own.wire.exchange,
    )
    sharers.equalise()
    replicas = None
    if groups.dp is not None:
        tensors = [*tree.parameters(), *tree.buffers()]
        broadcast_tensors(groups.dp, tensors)
        agree(groups.dp, _weights(tree), what="copy weights over dp", remedy=_SEED, timeout=limit)
        phases = _last_phases(own, tree)
        replicas = Replicas(groups.dp, phases, size, lambda work: own.wire.wait(work, "averages over dp", own.rank))
    return Ties(sharers, replicas, frozenset(counted), aliases, undefined)


def _watch(mesh: DeviceMesh, groups: _Groups, describe: Callable[[int], str]) -> Watch:
    """Over all ranks of the mesh: what befalls one copy of the network ends the others too."""
    rows = mesh.mesh if (mesh.mesh_dim_names or ("parareal",))[-1] == "parareal" else mesh.mesh.T
    rows = rows.reshape(-1, rows.shape[-1])
    ranks = dist.get_process_group_ranks(groups.everyone)
    who = {}
    for i, row in enumerate(rows.tolist(), start=1):
        replica = f"replica {i}, " if len(rows) > 1 else ""
        for k, rank in enumerate(row):
            who[rank] = f"rank {rank} ({replica}{describe(k).partition('(')[2]}"
    peers = [ranks.index(rank) for rank in dist.get_process_group_ranks(groups.parareal)]
    described = [who[rank] for rank in ranks]
    return Watch(groups.everyone, who=described, timeout=groups.limit.total_seconds(), peers=peers)


def _holders(net: PararealModule, layout: Layout) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """For each name of a tensor its other names, and for each name of a parameter the ranks that hold it."""
    names: dict[int, list[str]] = {}
    tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names.setdefault(id(tensor), []).append(name)
    ranks: dict[int, set[int]] = {}
    for rank in range(layout.ranks):
        for part in layout.names(rank):
            if layout.parts[part].target.startswith("segments.") and part[0] == "F":
                continue
            calls, attributes = tensors_of(net, part)
            for path in calls:
                for parameter in module_at(net, path).parameters():
                    ranks.setdefault(id(parameter), set()).add(rank)
            for path in attributes:
                owner, _, name = path.rpartition(".")
                read = module_at(net, owner)._parameters.get(name)
                if read is not None:
                    ranks.setdefault(id(read), set()).add(rank)
    aliases = {name: tuple(other for other in names[id(tensor)] if other != name) for name, tensor in tensors}
    aliases.update({key: () for key in net.state_dict() if key not in aliases})
    holders = {name: tuple(sorted(ranks.get(id(tensor), ()))) for name, tensor in tensors}
    return aliases, holders


def _in_order(
    parameters: Sequence[nn.Parameter], named: Mapping[str, nn.Parameter], aliases: Mapping[str, tuple[str, ...]]
) -> list[nn.Parameter]:
    """An order that all ranks see alike, whatever name each knows a tensor by: by the first of all of its names."""
    first: dict[int, str] = {}
    for name, parameter in named.items():
        first[id(parameter)] = min(name, *aliases[name], first.get(id(parameter), name))
    return sorted(parameters, key=lambda parameter: first[id(parameter)])


def _last_phases(own: Own, tree: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Every parameter with the number of the last backward call that reaches it."""
    numbers = own.phases()
    last: dict[int, int] = {}
    for name, part in own.parts.items():
        for parameter in part.parameters():
            last[id(parameter)] = max(last.get(id(parameter), 0), numbers[name])
    return [(parameter, last.get(id(parameter), 0)) for parameter in tree.parameters()]
