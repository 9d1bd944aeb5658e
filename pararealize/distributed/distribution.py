"""PararealModule, DeviceMesh -> Stage: each rank with its own segments, the ranks agreed before the first message.

ProcessGroups.joined   the ranks meet, each with arguments that are valid      process_groups.py, meeting.py
agree_on_partition     plan, weights, versions; who owns what, what crosses     rank_setup.py, partition.py
copy_modules           the rank's own modules                                   rank_modules.py
draw_values            of a network from the meta device                        meta_device.py
set_up_rank            messages, watchdog, gradients                            rank_setup.py
Stage                  a module with a step                                     stage.py, step.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.argument_types import typed_arguments
from pararealize.errors import DistributedError
from pararealize.plan.simulation import simulate
from pararealize.plan.transfer import Transfer
from pararealize.plan.window_ranks import WindowRanks, ranks_of_windows

from .assignment import assign
from .meta_device import draw_values
from .partition import SegmentedNetwork, SegmentPartition, module_at
from .process_groups import ProcessGroups, check_bucket_bytes
from .rank_modules import check_hooks, copy_modules
from .rank_segments import RankSegments
from .rank_setup import agree_on_partition, set_up_rank
from .stage import Stage
from .step import SegmentStep

__all__ = ["distribute"]


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

    def check() -> None:
        _check_arguments(
            assignment=assignment,
            checkpoint_activations=checkpoint_activations,
            seed=seed,
            bucket_bytes=bucket_bytes,
            reduce_linear=reduce_linear,
        )

    with ProcessGroups.joined(mesh, timeout, check) as groups:
        return _distribute(
            net,
            groups,
            assignment=assignment,
            checkpoint_activations=checkpoint_activations,
            seed=seed,
            bucket_bytes=bucket_bytes,
            reduce_linear=reduce_linear,
        )


@typed_arguments(DistributedError)
def _check_arguments(
    *,
    assignment: Sequence[int] | None,  # noqa: ARG001 - the decorator looks at it, as at the others
    checkpoint_activations: bool,  # noqa: ARG001
    seed: int,  # noqa: ARG001
    bucket_bytes: int,
    reduce_linear: bool | Literal["auto"],  # noqa: ARG001
) -> None:
    """Refuse arguments of other types; what they are for a network is looked at when the ranks have met."""
    check_bucket_bytes(bucket_bytes)


def _distribute(
    net: SegmentedNetwork,
    groups: ProcessGroups,
    *,
    assignment: Sequence[int] | None,
    checkpoint_activations: bool,
    seed: int,
    bucket_bytes: int,
    reduce_linear: bool | Literal["auto"],
) -> Stage:
    """Take a rank's share of the network, once all ranks have come."""

    def divide(ranks: int) -> tuple[SegmentPartition, Mapping[str, Any]]:
        if net.segment_devices is not None:
            raise DistributedError(
                "the network was converted with devices=[...], for one process; leave devices out: the mesh says where "
                "each segment runs"
            )
        check_hooks(net)
        runs = assign(net.plan, ranks, assignment)
        partition = SegmentPartition.of(net, runs, _windows(net, runs, reduce_linear))
        plan = net.plan
        facts = {
            "the plan's fingerprint": plan.fingerprint,
            "n": plan.n,
            "segments of the windows": [window.n for window in plan.windows],
            "where segments begin": [segment.first_block for segment in plan.segments],
            "coarse blocks": [row.kind for row in plan.coarse_blocks],
            "what adapters read": plan.source,
            "segments of the ranks": partition.runs,
            "mode": "train" if net.training else "eval",
            "seed": seed,
            "checkpoint_activations": checkpoint_activations,
            "bucket_bytes": bucket_bytes,
            "the trained parameters": sum(parameter.requires_grad for parameter in net.parameters()),
            "where ranks send sums (reduce_linear)": [
                "all-reduce" if window.all_reduces else [one.sum_to for one in window.peers]
                for window in partition.windows
            ],
        }
        return partition, facts

    partition = agree_on_partition(net, groups, divide)
    parts = partition.parts_of(groups.rank)
    groups.watch.doing("copying its modules")
    modules = copy_modules(net, parts, groups.device)
    is_meta = any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    undefined = draw_values(modules, net, parts, groups.device, seed) if is_meta else None
    segments = RankSegments(partition, groups.rank, modules, checkpoint_activations=checkpoint_activations)
    setup = set_up_rank(
        net,
        groups,
        partition,
        modules,
        last_phases=segments.last_phases(),
        bucket_bytes=bucket_bytes,
        name=net.plan.model,
        undefined=undefined,
    )
    return Stage(setup, SegmentStep(segments, setup.activity, setup.sync), net.plan)


def _windows(
    net: SegmentedNetwork, runs: Sequence[tuple[int, int]], reduce_linear: bool | Literal["auto"]
) -> tuple[WindowRanks, ...]:
    """What passes between ranks: in a row, or in sums where coarse blocks are the identity.

    What is chosen by itself is what makes the simulated step shorter, with the messages that the plan was made for;
    with those between GPUs of one machine where it was made for free ones.
    """
    if reduce_linear not in (True, False, "auto"):
        raise DistributedError(f"reduce_linear is {reduce_linear!r}; pass True, False or 'auto'")
    plan, blocks = net.plan, module_at(net, "coarse")._modules
    identities = {row.name for row in plan.coarse_blocks if type(blocks.get(row.name)) is nn.Identity}
    in_a_row, summed = ranks_of_windows(plan.windows, runs), ranks_of_windows(plan.windows, runs, identities)
    if reduce_linear == "auto" and summed != in_a_row:
        link = plan.transfer if plan.latency or plan.bandwidth is not None else Transfer()
        counts = [last - first + 1 for first, last in runs]
        with_sums, without = (
            simulate(plan, latency=link.latency, bandwidth=link.bandwidth, assignment=counts, reduce_linear=way)
            for way in (True, False)
        )
        reduce_linear = with_sums.step < without.step
    return summed if reduce_linear else in_a_row
