"""LayerParallel, number of ranks -> LayerLayout: which rank owns which layers, and what crosses besides their values.

Each rank has consecutive intervals of the finest level, with all layers in them; the first has the stem as well, the
last the head. A coarse step of any level stands where the layer stands whose weights it uses.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pararealize.distributed.partition import SharedValue, differentiable, signature_of
from pararealize.plan.parts import Part
from pararealize.tracing.operations import as_captured

if TYPE_CHECKING:
    from pararealize.multigrid.module import LayerParallel
    from pararealize.multigrid.solver.hierarchy import Hierarchy

__all__ = ["LayerLayout"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerLayout:
    """Who owns what.

    Attributes:
        hierarchy: the levels.
        runs: first and last interval (from 1) of each rank; one that has none ends before it begins.
        owners: the rank of every layer.
        signature: of the network's call.
        inputs: from the names in the signature to themselves.
        fixed: inputs that are no tensors, with the values that the network was captured with.
        parts: ``stem``, ``head``, and ``f0``, ``f1`` … of the layers.
        values: contexts that the stem gives and layers or the head read, ``c0``, ``c1`` …, as they are sent.
        random: whether layers may draw random numbers.
    """

    hierarchy: Hierarchy
    runs: tuple[tuple[int, int], ...]
    owners: tuple[int, ...]
    signature: inspect.Signature
    inputs: Mapping[str, str]
    fixed: Mapping[str, Any]
    parts: Mapping[str, Part]
    values: tuple[SharedValue, ...]
    random: bool

    @classmethod
    def of(cls, net: LayerParallel, ranks: int) -> LayerLayout:
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

    @property
    def ranks(self) -> int:
        """How many ranks."""
        return len(self.runs)

    def layers(self, rank: int) -> tuple[int, ...]:
        """The layers of a rank."""
        return tuple(n for n, owner in enumerate(self.owners) if owner == rank)

    def names(self, rank: int) -> tuple[str, ...]:
        """The parts that a rank owns."""
        own = [f"f{n}" for n in self.layers(rank)]
        return (*(["stem"] if rank == 0 else []), *own, *(["head"] if rank == self.ranks - 1 else []))
