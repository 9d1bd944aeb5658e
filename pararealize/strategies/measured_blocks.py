"""A chain recorded at two batch sizes -> MeasuredBlocks: seconds of its blocks here and now, at any batch size."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.cost import BlockCost, Costs, measure_costs
from pararealize.analysis.operations import ChainOperations, list_chain_operations

__all__ = ["MeasuredBlocks"]

LEAST = 0.05  # of what is measured: no block takes less at a smaller batch


@dataclasses.dataclass(frozen=True)
class MeasuredBlocks:
    """Seconds of a network's blocks, measured at one or two batch sizes, and on a line through these at others.

    Modules that a plan adds are measured when a plan asks for them.

    Attributes:
        chains: the same network, recorded at each of these batch sizes, the smaller first.
        repeats: measured rounds.
    """

    chains: tuple[BlockChain, ...]
    repeats: int = 5

    @cached_property
    def operations(self) -> ChainOperations:
        """Every operation, for the network's memory."""
        return list_chain_operations(self.chains[-1])

    @cached_property
    def measured(self) -> tuple[Costs, ...]:
        """Of each chain."""
        return tuple(measure_costs(chain, repeats=self.repeats) for chain in self.chains)

    def costs(self, batch: int) -> Costs:
        """Of a batch of that size."""
        few, many = self.measured[0], self.measured[-1]
        sizes = self.chains[0].capture.batch, self.chains[-1].capture.batch

        def between(a: float | None, b: float | None) -> float:
            a, b = a or 0.0, b or 0.0
            if sizes[0] == sizes[1]:
                return b * batch / sizes[1]
            return max(a + (b - a) * (batch - sizes[0]) / (sizes[1] - sizes[0]), LEAST * min(a, b))

        def one(a: BlockCost, b: BlockCost) -> BlockCost:
            return dataclasses.replace(
                b,
                seconds_forward=between(a.seconds_forward, b.seconds_forward),
                seconds_backward=between(a.seconds_backward, b.seconds_backward),
            )

        return dataclasses.replace(
            many,
            stem=one(few.stem, many.stem),
            blocks=tuple(map(one, few.blocks, many.blocks)),
            head=one(few.head, many.head),
        )
