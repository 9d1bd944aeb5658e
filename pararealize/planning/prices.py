"""BlockChain, Fields, Costs, n -> Prices: what adapters and coarse blocks cost before any is built.

They are counted on the meta device; where the network's costs are seconds, they are measured at the same batch, each
once. Coarse blocks that are made of the network's own blocks cost what these do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.causality import Sides
from pararealize.analysis.cost import BlockCost, Costs, Split, measure_module, plus
from pararealize.analysis.fields.dependency import Dependencies, dependencies
from pararealize.analysis.fields.field import Fields
from pararealize.analysis.last_layer import layers_at_ends
from pararealize.analysis.space import Space
from pararealize.coarse.adapter import adapter_cost, build_adapter
from pararealize.coarse.coarse_block import coarse_cost, coarse_units
from pararealize.coarse.coverage import LARGEST_KERNEL, kernel_for
from pararealize.coarse.kinds import KIND_TABLE, Coarse, kind_for
from pararealize.coarse.one_sided import misfit
from pararealize.coarse.output_correction import (
    MapKind,
    OutputCorrection,
    correction_cost,
    correction_parameters,
)
from pararealize.coarse.spec import AdapterReads
from pararealize.errors import SourceError
from pararealize.random_state import seeded_weights

from .arguments import AdapterSource

__all__ = ["Price", "Prices"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Price:
    """What a part costs.

    Attributes:
        parameters: how many it adds to the network.
        flops: forward and backward, per sample.
        cost: forward and backward, in the unit of the network's costs.
    """

    parameters: int
    flops: tuple[int, int]
    cost: Split

    def columns(self) -> dict[str, Any]:
        """As the columns of a plan's row."""
        directions = "forward", "backward"
        flops = {f"flops_{way}": value for way, value in zip(directions, self.flops, strict=True)}
        cost = {f"cost_{way}": value for way, value in zip(directions, self.cost, strict=True)}
        return {"parameters": self.parameters, **flops, **cost}


@dataclass(frozen=True, slots=True)
class Prices:
    """What the network, adapters and coarse blocks cost; whatever was counted or measured once is remembered.

    Attributes:
        chain: the network's blocks.
        fields: their receptive fields, which say how many coarse units there are.
        costs: their costs.
        n: the number of segments of a window.
        source: what the adapters of the first window read, ``"input"`` or ``"stem"``; those of later ones read what the
            window before gives.
        several: whether there are several windows. Then the stem is in front of the first as each is in front of the
            next, and adapters that keep the space are identities.
    """

    chain: BlockChain
    fields: Fields
    costs: Costs
    n: int
    source: AdapterSource
    several: bool = False
    _memory: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def _once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """A value that plans ask for again and again under one key."""
        if key not in self._memory:
            self._memory[key] = compute()
        value: T = self._memory[key]
        return value

    # What may be read ------------------------------------------------------------------------------------------------

    @property
    def dependencies(self) -> Dependencies:
        """What every block reads along every axis; looked at once, and not where there is one segment alone."""
        return self._once("dependencies", partial(self.chain.once, "dependencies", partial(dependencies, self.chain)))

    def _sides(self, begin: int, first: int, *, from_input: bool = False) -> Sides:
        key = "sides", begin, first, from_input
        return self._once(
            key, lambda: self.chain.once(key, lambda: self.dependencies.of(begin, first, from_input=from_input))
        )

    def reads(self, begin: int) -> AdapterReads:
        """What the adapters of the window that begins with that block read."""
        return "window" if self.several and (begin > 0 or self.source == "stem") else self.source

    def seen_by_adapter(self, first: int, begin: int = 0) -> Sides:
        """Where an adapter in front of block ``first``, in a window from block ``begin`` on, may read.

        It is where the blocks that it stands for read.
        """
        return self._sides(begin, first, from_input=self.reads(begin) == "input")

    def seen_by(self, first: int, last: int) -> Sides:
        """Where a coarse block for blocks ``first`` to ``last`` may read."""
        return self._sides(first, last + 1)

    # The network itself ----------------------------------------------------------------------------------------------

    def end(self, block: Block, cost: BlockCost) -> Price:
        """The price of the stem or the head."""
        split = self.costs.split(cost) if block.nodes or cost.seconds else (0, 0)
        return Price(block.parameters, (cost.flops_forward, cost.flops_backward), split)

    def blocks(self, indices: Iterable[int]) -> Price:
        """The price of some of the network's own blocks."""
        indices = list(indices)
        costs = [self.costs.blocks[i] for i in indices]
        return Price(
            sum(self.chain.blocks[i].parameters for i in indices),
            (sum(cost.flops_forward for cost in costs), sum(cost.flops_backward for cost in costs)),
            plus(*map(self.costs.split, costs)),
        )

    # Adapters --------------------------------------------------------------------------------------------------------

    def origin(self, begin: int = 0) -> Space:
        """The space that the adapters of the window that begins with that block read from."""
        from_input = self.reads(begin) == "input" and self.chain.source is not None
        return self.chain.source if from_input and self.chain.source is not None else self.chain.blocks[begin].x

    def adapter(self, first: int, begin: int = 0) -> Price:
        """The price of an adapter into the input of block ``first``, in a window from block ``begin`` on.

        Raises:
            SourceError: every adapter from there would read what the network does not.
        """
        target, sides = self.chain.blocks[first].x, self.seen_by_adapter(first, begin)
        if why := self.why_no_adapter(first, begin):
            raise SourceError(why)
        origin, reads = self.origin(begin), self.reads(begin)
        build = partial(build_adapter, origin, target, reads=reads, sides=sides)
        count = partial(adapter_cost, origin, target, reads=reads, sides=sides)
        return self._module(("adapter", origin, target, reads, sides), count, build, origin, first=reads == "input")

    def why_no_adapter(self, first: int, begin: int = 0) -> str:
        """Why none leads into the input of block ``first``, and what to do; empty where one does."""
        block, reads = self.chain.blocks[first], self.reads(begin)
        why = misfit(self.origin(begin), block.x, self.seen_by_adapter(first, begin))
        if not why:
            return ""
        stem = 'pass source="stem"; or ' if reads == "input" else ""
        where = "window before it" if reads == "window" else reads
        return (
            f"no adapter leads from the {where} into block {block.name} without showing it what the network "
            f"does not see: it {why}; {stem}let the blocks that change the axes be sequential (sequential=...), or "
            "convert the part behind them"
        )

    # Coarse blocks ---------------------------------------------------------------------------------------------------

    def units(self, kind: str) -> int:
        """How many units a coarse block of that kind has; 0 where it is not made of units."""
        row = KIND_TABLE.get(kind)
        if row is None or row.units is None:
            return 0
        return self._once(("units", kind), partial(row.units, self.chain, self.fields, self.n))

    def kernel(self, kind: str, first: int, last: int) -> int:
        """The width of the convolution of a coarse block for those blocks; 0 where it has none that a plan decides."""
        if not self._has_kernel(kind, self.chain.blocks[last].y):
            return 0
        return kernel_for(self.chain.blocks[first].x, self.fields.of(first, last))

    def _has_kernel(self, kind: str, y: Space) -> bool:
        row = KIND_TABLE.get(kind)
        if row is None or row.convolves is None:
            return False
        return self._once(("convolves", kind, y), partial(row.convolves, y, self.chain))

    def coarse_block(self, kind: str, units: int, kernel: int, first: int, last: int) -> Price:
        """The price of a coarse block that stands for blocks ``first`` to ``last``, with the correction around it.

        What a callable gives is not known before it builds: the correction alone.
        """
        blocks = self.chain.blocks[first : last + 1]
        x, y = blocks[0].x, blocks[-1].y
        row = KIND_TABLE.get(kind)
        if row is None:
            price = Price(0, (0, 0), (0, 0))
        elif row.blocks is not None:
            price = self.blocks(first + offset for offset in row.blocks(blocks, units))
            price = price if row.copies else replace(price, parameters=0)
        else:
            arguments = kind, x, y, units, kernel, self.seen_by(first, last)
            price = self._module(arguments, partial(coarse_cost, *arguments), partial(coarse_units, *arguments), x)
        return replace(price, cost=plus(price.cost, self._correction(x, y)))

    def layer_at_end(self, block: int) -> str:
        """The layer at the end of a block in which a map of its output can stand; empty where there is none."""
        key = "layers at ends"
        return self._once(key, lambda: self.chain.once(key, lambda: layers_at_ends(self.chain)))[block]

    def correction(self, kind: MapKind, rank: int, space: Space, *, differs: bool, reads_x: bool) -> Price:
        """The price of an output correction."""
        what = partial(OutputCorrection, kind, rank, space, differs=differs, reads_x=reads_x)
        key = "correction", kind, rank, space, differs, reads_x

        def price() -> Price:
            cost = correction_cost(kind, rank, space, differs=differs, reads_x=reads_x)
            parameters = correction_parameters(kind, rank, space, differs=differs, reads_x=reads_x)
            return Price(
                parameters, (cost.flops_forward, cost.flops_backward), self._cost(key, cost, what, space, inputs=2)
            )

        return self._once(key, price)

    def between(self, coarse: Coarse, first: int, stop: int) -> Split:
        """The cost of a coarse block for blocks ``first`` up to ``stop``, before cuts are known.

        Of those between the same two spaces, these blocks are all; a convolution is as wide as it can be; of
        ``"exact"`` it is the correction alone, as the cost of the segment comes with the cut.
        """
        if first >= stop:
            return 0, 0
        x, y = self.chain.blocks[first].x, self.chain.blocks[stop - 1].y
        kind, _ = kind_for(coarse, x, y, self.seen_by(first, stop - 1))
        if kind == "exact":
            return self._correction(x, y)
        kernel = LARGEST_KERNEL if self._has_kernel(kind, y) else 0
        return self.coarse_block(kind, self.units(kind), kernel, first, stop - 1).cost

    def _correction(self, x: Space, y: Space) -> Split:
        """The subtraction before F^j and the addition behind it: an element is written once forward, twice backward."""
        return plus(self._sum(x, difference=True), self._sum(y, difference=False))

    def _sum(self, space: Space, *, difference: bool) -> Split:
        """The cost of the sum of two values of a space, or of their difference."""
        elements = BlockCost(elements_forward=space.numel, elements_backward=2 * space.numel)
        key = "sum", space, difference
        return self._once(
            key, partial(self._cost, key, elements, partial(_Sum, difference=difference), space, inputs=2)
        )

    # Modules ---------------------------------------------------------------------------------------------------------

    def _module(
        self,
        key: Hashable,
        count: Callable[[], tuple[int, BlockCost]],
        build: Callable[[], nn.Module],
        x: Space,
        *,
        first: bool = False,
    ) -> Price:
        """The price of the module that ``build`` makes and ``count`` counts."""

        def price() -> Price:
            parameters, cost = count()
            flops = cost.flops_forward, cost.flops_backward
            return Price(parameters, flops, self._cost(key, cost, build, x, first=first))

        return self._once(key, price)

    def _cost(
        self,
        key: Hashable,
        count: BlockCost,
        build: Callable[[], nn.Module],
        x: Space,
        *,
        first: bool = False,
        inputs: int = 1,
    ) -> Split:
        """A count as it is, or seconds, predicted or measured, where the network's costs are seconds."""
        if self.costs.unit == "flops":
            return self.costs.split(count)
        batch = max(self.chain.capture.batch, 1)
        if self.costs.module_seconds is not None:
            return self.costs.module_seconds(key, build, x, batch, first=first, inputs=inputs)
        home = next((p.device for p in self.chain.capture.model.parameters()), torch.device("cpu"))
        with seeded_weights(0, "measured"):
            module = build().train(self.chain.capture.model.training)
        return measure_module(module.to(home), x, batch, first=first, inputs=inputs)


class _Sum(nn.Module):
    """``(a, b) -> a + b``, or their difference."""

    def __init__(self, *, difference: bool) -> None:
        super().__init__()
        self.difference = difference

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b if self.difference else a + b
