"""LayeredNetwork, number of ranks -> LayerPartition: which rank owns which layers, and which contexts others read.

Each rank owns consecutive intervals of the finest level, with all layers in them; the first rank owns the stem as well,
the last one the head. A coarse step of any level is computed by the rank that owns the layer whose weights it uses.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pararealize.distributed.messages.message_order import message_tags
from pararealize.distributed.partition import (
    Partition,
    PartitionableNetwork,
    SharedValue,
    differentiable_outputs,
)
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.layers import Layers
from pararealize.multigrid.solver.settings import SettingsAttributes
from pararealize.tracing.conditions import CallConditions

__all__ = ["SEED", "LayerPartition", "LayeredNetwork"]

SEED = "the seed"  # the name of the message with which the first rank gives the seed of a step's random numbers


class LayeredNetwork(PartitionableNetwork, SettingsAttributes):
    """A network whose layers multigrid solves for: its parts are ``stem``, ``f0``, ``f1`` … of the layers, ``head``."""

    if TYPE_CHECKING:  # as in PartitionableNetwork

        @property
        def structure(self) -> Layers:
            """Stem, layers and head."""

        @property
        def hierarchy(self) -> Hierarchy:
            """The levels of multigrid."""

        @property
        def call_conditions(self) -> CallConditions:
            """How it is called, and with inputs of which sizes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerPartition(Partition):
    """The layers of a network, divided among ranks. A rank without any has a run that ends before it begins.

    Shared values are the contexts that the stem gives and layers or the head read: ``c0``, ``c1`` ….

    Attributes:
        hierarchy: the levels.
        owners: the rank of every layer.
        random: whether layers may draw random numbers.
        random_in_eval: whether they may in eval mode, too.
    """

    hierarchy: Hierarchy
    owners: tuple[int, ...]
    random: bool
    random_in_eval: bool

    @classmethod
    def of(cls, net: LayeredNetwork, ranks: int) -> LayerPartition:
        """Share a network's intervals among so many ranks."""
        layers, hierarchy = net.structure, net.hierarchy
        owners = hierarchy.owners(ranks)
        values = []
        for i, flag in enumerate(differentiable_outputs(net, layers.stem)[1:]):
            readers = {owners[n] for n, layer in enumerate(layers.layers) if i in layer.reads}
            readers |= {ranks - 1} if i in layers.head_reads else set()
            values.append(SharedValue(name=f"c{i}", readers=tuple(sorted(readers - {0})), differentiable=flag))
        labels, owned = [], []
        for rank in range(ranks):
            numbers = [n for n, owner in enumerate(owners) if owner == rank]
            ends = [layers.layers[n].name for n in numbers[:1] + numbers[-1:]]
            which = f"layers {numbers[0]} to {numbers[-1]}, {' to '.join(ends)}" if numbers else "no layers"
            labels.append(f"{rank} ({which})")
            is_here = {"stem": rank == 0, "head": rank == ranks - 1}
            owned.append(tuple(p.name for p in net.network_parts.values() if is_here.get(p.kind, p.j in numbers)))
        placeholders = layers.stem.find_nodes(op="placeholder")
        return cls(
            hierarchy=hierarchy,
            runs=tuple((share.start + 1, share.stop) for share in hierarchy.share(ranks)),
            labels=tuple(labels),
            owners=owners,
            conditions=net.call_conditions,
            inputs=dict(zip(layers.call.tensor_names, map(str, (p.target for p in placeholders)), strict=True)),
            parts=net.network_parts,
            owned=tuple(owned),
            values=tuple(values),
            tags=message_tags([SEED, *(value.name for value in values)]),
            random=any(layer.random for layer in layers.layers),
            random_in_eval=any(layer.random_in_eval for layer in layers.layers),
        )

    def layers(self, rank: int) -> tuple[int, ...]:
        """The numbers of a rank's layers."""
        return tuple(n for n, owner in enumerate(self.owners) if owner == rank)
