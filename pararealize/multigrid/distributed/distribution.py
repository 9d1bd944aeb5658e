"""LayerParallel, DeviceMesh -> LayerStage: each rank with its own layers, the ranks agreed before the first message.

ProcessGroups.joined   the ranks meet, each with valid arguments    distributed/process_groups.py
agree_on_partition     layers, settings, weights; who owns what     distributed/rank_setup.py, partition.py
copy_modules           the rank's own modules                       distributed/rank_modules.py
set_up_rank            messages, watchdog, gradients                distributed/rank_setup.py
LayerStage             a module with a step                         stage.py, step.py
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from pararealize.argument_types import typed_arguments
from pararealize.distributed.process_groups import ProcessGroups, check_bucket_bytes
from pararealize.distributed.rank_modules import check_hooks, copy_modules
from pararealize.distributed.rank_setup import agree_on_partition, set_up_rank
from pararealize.errors import DistributedError
from pararealize.multigrid.solver.settings import Settings

from .partition import LayeredNetwork, LayerPartition
from .stage import LayerStage
from .step import LayerStep, RankLayers

__all__ = ["distribute_layers"]


def distribute_layers(
    net: LayeredNetwork, mesh: DeviceMesh, *, timeout: timedelta | float = 600.0, bucket_bytes: int = 25 << 20
) -> LayerStage:
    """What :meth:`LayerParallel.distribute` does."""
    with ProcessGroups.joined(mesh, timeout, lambda: _check_arguments(bucket_bytes=bucket_bytes)) as groups:
        return _distribute(net, groups, bucket_bytes)


@typed_arguments(DistributedError)
def _check_arguments(*, bucket_bytes: int) -> None:
    check_bucket_bytes(bucket_bytes)


def _distribute(net: LayeredNetwork, groups: ProcessGroups, bucket_bytes: int) -> LayerStage:
    """Take a rank's share of the layers, once all ranks have come."""
    settings = Settings.of(net)

    def divide(ranks: int) -> tuple[LayerPartition, Mapping[str, Any]]:
        if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
            raise DistributedError(
                "the network is on the meta device; give it values first: net.to_empty(...), and load"
            )
        check_hooks(net)
        return LayerPartition.of(net, ranks), {
            "the layers": str(net.structure),
            "the levels": str(net.hierarchy),
            "the settings": str(settings),
            "mode": "train" if net.training else "eval",
            "bucket_bytes": bucket_bytes,
            "the trained parameters": sum(parameter.requires_grad for parameter in net.parameters()),
        }

    partition = agree_on_partition(net, groups, divide)
    rank = groups.rank
    groups.watch.doing("copying its modules")
    modules = copy_modules(net, partition.parts_of(rank), groups.device)
    numbered = {n: net.structure.layers[n] for n in partition.layers(rank)}
    layers = RankLayers.of(partition, rank, modules, numbered, net.structure.head_reads)
    setup = set_up_rank(
        net,
        groups,
        partition,
        modules,
        last_phases=layers.last_phases(),
        bucket_bytes=bucket_bytes,
        name=net._get_name(),  # type: ignore[no-untyped-call]
    )
    return LayerStage(setup, LayerStep(layers, setup.activity, setup.sync, settings), partition)
