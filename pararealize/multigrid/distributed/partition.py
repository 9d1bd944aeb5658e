"""LayeredNetwork, number of ranks -> LayerPartition: which rank owns which layers, and which contexts others read.

Each rank has consecutive intervals of the finest level, with all layers in them; the first has the stem as well, the
last the head. A coarse step of any level stands where the layer stands whose weights it uses.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pararealize.distributed.partition import Partition, PartitionableNetwork, SharedValue, differentiable, signature_of
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.layers import Layers
from pararealize.tracing.operations import as_captured

__all__ = ["LayerPartition", "LayeredNetwork"]


class LayeredNetwork(PartitionableNetwork):
    """A network whose layers multigrid solves for: its parts are ``stem``, ``f0``, ``f1`` … of the layers, ``head``.

    It has an attribute for every field of :class:`~pararealize.multigrid.solver.settings.Settings` besides.
    """

    if TYPE_CHECKING:  # as in PartitionableNetwork

        @property
        def structure(self) -> Layers:
            """Stem, layers and head."""

        @property
        def hierarchy(self) -> Hierarchy:
            """The levels of multigrid."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerPartition(Partition):
    """The layers of a network, divided among ranks. A rank without any has a run that ends before it begins.

    Shared values are the contexts that the stem gives and layers or the head read: ``c0``, ``c1`` ….

    Attributes:
        hierarchy: the levels.
        owners: the rank of every layer.
        random: whether layers may draw random numbers.
    """

    hierarchy: Hierarchy
    owners: tuple[int, ...]
    random: bool

    @classmethod
    def of(cls, net: LayeredNetwork, ranks: int) -> LayerPartition:
        """Share a network's intervals among so many ranks."""
        layers, hierarchy = net.structure, net.hierarchy
        owners = [0] * hierarchy.layers
        runs = []
        for rank, share in enumerate(hierarchy.share(ranks)):
            runs.append((share.start + 1, share.stop))
            for j in share:
                for n in range(*hierarchy.levels[0].intervals[j]):
                    owners[n] = rank
        flags = differentiable(net, layers.stem)[1:]
        values = []
        for i, flag in enumerate(flags):
            readers = {owners[n] for n, layer in enumerate(layers.layers) if i in layer.reads}
            readers |= {ranks - 1} if i in layers.head_reads else set()
            values.append(SharedValue(name=f"c{i}", readers=tuple(sorted(readers - {0})), differentiable=flag))
        nodes = list(layers.stem.nodes)
        return cls(
            hierarchy=hierarchy,
            runs=tuple(runs),
            owners=tuple(owners),
            signature=signature_of(layers.stem),
            inputs={str(node.target): str(node.target) for node in nodes if node.op == "placeholder"},
            fixed={
                str(node.args[2]): node.args[1]
                for node in nodes
                if node.op == "call_function" and node.target is as_captured
            },
            parts=net.parts,
            values=tuple(values),
            random=any(layer.random for layer in layers.layers),
        )

    def layers(self, rank: int) -> tuple[int, ...]:
        """The layers of a rank."""
        return tuple(n for n, owner in enumerate(self.owners) if owner == rank)

    def names(self, rank: int) -> tuple[str, ...]:
        """The parts that a rank owns."""
        own = [f"f{n}" for n in self.layers(rank)]
        return (*(["stem"] if rank == 0 else []), *own, *(["head"] if rank == self.ranks - 1 else []))
