"""A chain, batch sizes -> MeasuredBlocks: seconds of its blocks here and now, at any batch size."""

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

    Modules that a plan adds are measured when a plan asks for them. A network that takes one number of samples alone is
    measured at that, and one with batch norms that refuse a single value at two samples in the place of one.

    Attributes:
        chain: the network's blocks.
        batches: where they are measured, the smaller first.
        repeats: measured rounds.
    """

    chain: BlockChain
    batches: tuple[int, ...]
    repeats: int = 5

    @cached_property
    def operations(self) -> ChainOperations:
        """Every operation, for the network's memory."""
        return list_chain_operations(self.chain)

    @cached_property
    def measured(self) -> dict[int, Costs]:
        """At each batch size."""
        if self.chain.capture.fixed_batch:
            return {self.chain.capture.batch: measure_costs(self.chain, repeats=self.repeats)}
        costs = {}
        for batch in self.batches:
            try:
                costs[batch] = measure_costs(self.chain, batch=batch, repeats=self.repeats)
            except ValueError:  # of batch norm
                if batch != 1:
                    raise
                costs[2] = measure_costs(self.chain, batch=2, repeats=self.repeats)
        return costs

    def costs(self, batch: int) -> Costs:
        """Of a batch of that size."""
        low, high = min(self.measured), max(self.measured)
        few, many = self.measured[low], self.measured[high]

        def between(a: float | None, b: float | None) -> float:
            a, b = a or 0.0, b or 0.0
            if low == high:
                return b * batch / high
            return max(a + (b - a) * (batch - low) / (high - low), LEAST * min(a, b))

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
