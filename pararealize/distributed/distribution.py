"""PararealModule, DeviceMesh -> Stage: each rank with its own segments, the ranks agreed before the first message.

Groups      of the ranks of one network, of its copies      groups.py
agree       plan, weights, versions                         agree.py
Partition   who owns what, what crosses                     layout.py
Peers       who passes z or sums to whom                    plan/communication.py
share_of    a rank's own modules, with memory               materialise.py
Wire        messages                                        wire.py
Ties        parameters that other ranks hold too            ties.py
Stage       a module with a step                            stage.py, step.py
"""

from __future__ import annotations

import platform
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import DistributedError
from pararealize.plan.communication import Peers, peers_of
from pararealize.plan.simulation import simulate
from pararealize.plan.transfer import Transfer
from pararealize.tracing.module_view import Piece

from .activation_checkpoint import recomputed
from .consistency import FAULT, agree, agree_on_weights
from .materialise import Undefined, draw, share_of
from .p2p import Wire
from .partition import (
    Partition,
    PartitionableNetwork,
    SegmentedNetwork,
    SegmentPartition,
    assign,
    module_at,
    tensors_of,
)
from .process_groups import Groups
from .rank import Own
from .stage import Stage
from .tied import ties_of

__all__ = ["WHAT", "distribute", "refuse_norms", "watch_over"]

WHAT = "distribute the network"


def distribute(
    net: SegmentedNetwork,
    mesh: DeviceMesh,
    *,
    assignment: Sequence[int] | None = None,
    timeout: timedelta | float = 600.0,
    checkpoint_activations: bool = False,
    seed: int = 0,
    bucket_bytes: int = 25 << 20,
    reduce_linear: bool | Literal["auto"] = "auto",
) -> Stage:
    """What :meth:`PararealModule.distribute` does."""
    limit = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
    groups = Groups.of(mesh, limit)
    facts: dict[str, Any] = {"torch": torch.__version__, "Python": platform.python_version()}
    layout = None
    peers: tuple[Peers, ...] = ()
    try:
        layout = _layout(net, groups, assignment)
        peers = _peers(net, layout, reduce_linear)
        facts.update(_facts(net, layout, checkpoint_activations, seed, bucket_bytes))
        facts["where ranks send sums (reduce_linear)"] = [one.sum_to for one in peers]
    except DistributedError as fault:
        facts[FAULT] = str(fault)
    agree(groups.everyone, facts, what=WHAT, remedy="start every rank from the same program", timeout=limit)
    assert layout is not None
    agree_on_weights(groups.control, net, what=WHAT, timeout=limit)
    names = layout.names(groups.rank)
    share = share_of(net, names, groups.device, {name: part.target for name, part in layout.parts.items()})
    meta = any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    undefined = draw(share, net, names, groups.device, seed) if meta else Undefined({})
    describe = _describer(net, layout)
    watch = watch_over(mesh, groups, describe)
    wire = Wire(groups.parareal, groups.control, groups.device, limit, describe, watch)
    calls: dict[str, Callable[..., Any]] = dict(share.parts)
    if checkpoint_activations:
        for name, part in share.parts.items():
            if name[0] == "g" and isinstance(part, Piece):
                calls[name] = recomputed(share.tree, part)
        for name in names:
            if layout.parts[name].target.startswith("segments."):
                calls[name] = calls[layout.parts[name].target.removeprefix("segments.")]
    own = Own(
        layout=layout,
        rank=groups.rank,
        n=net.plan.n,
        source=net.plan.source,
        parts=share.parts,
        calls=calls,
        peers=peers[groups.rank],
        wire=wire,
        watch=watch,
    )
    ties = ties_of(net, own, share.tree, groups, undefined, bucket_bytes)
    stage = Stage(share.tree, own, ties, f"{net.plan.model}: {describe(groups.rank)} of {layout.ranks}", mesh)
    stage.plan = net.plan
    weakref.finalize(stage, watch.close).atexit = False  # at exit, the watch itself looks at how the script ended
    return stage


# What ranks agree on -------------------------------------------------------------------------------------------------


def _layout(net: SegmentedNetwork, groups: Groups, assignment: Sequence[int] | None) -> SegmentPartition:
    """Who owns what, after refusing what cannot be distributed."""
    if net.devices is not None:
        raise DistributedError(
            "the network was converted with devices=[...], for one process; leave devices out: the mesh says where "
            "each segment runs"
        )
    layout = SegmentPartition.of(net, assign(net.plan, dist.get_world_size(groups.parareal), assignment))
    refuse_norms(net, layout)
    return layout


def refuse_norms(net: PartitionableNetwork, layout: Partition) -> None:
    """Refuse batch norms that wait for other ranks, or of which several ranks would keep statistics."""
    synchronised = [name for name, module in net.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if synchronised:
        raise DistributedError(
            f"{len(synchronised)} synchronised batch norms ({synchronised[0]}) would wait for ranks that never come to "
            "them; build the model with nn.BatchNorm layers"
        )
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


def _peers(net: SegmentedNetwork, layout: SegmentPartition, reduce_linear: bool | Literal["auto"]) -> tuple[Peers, ...]:
    """What passes between ranks: in a row, or in sums where coarse blocks are the identity.

    What is chosen by itself is what makes the simulated step shorter, with messages as between GPUs of one machine.
    """
    if reduce_linear not in (True, False, "auto"):
        raise DistributedError(f"reduce_linear is {reduce_linear!r}; pass True, False or 'auto'")
    identities = {
        j for j in range(1, net.plan.n) if type(module_at(net, "coarse")._modules.get(f"F{j}")) is nn.Identity
    }
    in_a_row, summed = peers_of(layout.runs), peers_of(layout.runs, identities)
    if reduce_linear == "auto" and summed != in_a_row:
        link, counts = Transfer(), [last - first + 1 for first, last in layout.runs]
        with_sums, without = (
            simulate(net.plan, latency=link.latency, bandwidth=link.bandwidth, assignment=counts, reduce_linear=way)
            for way in (True, False)
        )
        reduce_linear = with_sums.step < without.step
    return summed if reduce_linear else in_a_row


def _keeps_statistics(module: nn.Module) -> bool:
    normalises = isinstance(module, nn.modules.batchnorm._NormBase)
    return normalises and getattr(module, "running_mean", None) is not None


def _facts(net: SegmentedNetwork, layout: SegmentPartition, checkpoints: bool, seed: int, size: int) -> dict[str, Any]:
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


def _describer(net: SegmentedNetwork, layout: SegmentPartition) -> Callable[[int], str]:
    def describe(rank: int) -> str:
        first, last = layout.runs[rank]
        blocks = f"{net.plan.segments[first - 1].first_block} to {net.plan.segments[last - 1].last_block}"
        which = f"segment {first}" if first == last else f"segments {first} to {last}"
        return f"{rank} ({which}, {blocks})"

    names = [describe(rank) for rank in range(layout.ranks)]
    return names.__getitem__


def watch_over(mesh: DeviceMesh, groups: Groups, describe: Callable[[int], str]) -> Watch:
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
