"""BlockChain, fields, Costs, n -> Prices: what adapters and coarse blocks cost before any is built.

They are counted on the meta device; where the network's costs are seconds, they are measured at the same batch, each
once. ``"block"`` and ``"exact"`` are made of the network's own blocks, and cost what these do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from pararealize.analysis.cost import NO_COST, BlockCost, Costs, measure_module
from pararealize.coarse.adapter import adapter_cost, build_adapter
from pararealize.coarse.coarse_block import (
    LARGEST_KERNEL,
    Coarse,
    block_choice,
    coarse_cost,
    coarse_units,
    kernel_for,
    kind_for,
    units_for,
)
from pararealize.coarse.evidence_table import family_of
from pararealize.random_state import seeded_weights

if TYPE_CHECKING:
    from pararealize.analysis.blocks import BlockChain, Space
    from pararealize.analysis.fields.field import Fields

__all__ = ["Price", "Prices", "Split", "plus"]

Split: TypeAlias = tuple[float, float]  # forward and backward


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


@dataclass(frozen=True)
class Prices:
    """What adapters and coarse blocks cost.

    Attributes:
        chain: the network's blocks.
        fields: their receptive fields, which say how many coarse units there are.
        costs: their costs.
        n: the number of segments.
        source: what adapters read, ``"input"`` or ``"stem"``.
    """

    chain: BlockChain
    fields: Fields
    costs: Costs
    n: int
    source: str
    _units: dict[str, int] = field(default_factory=dict, init=False, repr=False)  # known so far, by kind
    _sums: dict[tuple[Space, bool], Split] = field(default_factory=dict, init=False, repr=False)  # likewise
    _modules: dict[tuple[Any, ...], Price] = field(default_factory=dict, init=False, repr=False)  # likewise, as asked

    # Adapters --------------------------------------------------------------------------------------------------------

    @property
    def origin(self) -> Space:
        """The space that adapters read from."""
        return self.chain.source if self.source == "input" and self.chain.source is not None else self.chain.blocks[0].x

    def adapter(self, target: Space) -> Price:
        """Of an adapter into a space."""
        stem = self.source == "stem"
        made = partial(build_adapter, self.origin, target, from_stem=stem)
        counted = partial(adapter_cost, self.origin, target, from_stem=stem)
        return self._module(("adapter", target), counted, made, self.origin, first=not stem)

    # Coarse blocks ---------------------------------------------------------------------------------------------------

    def units(self, kind: str) -> int:
        """How many units a coarse block of that kind has; none where it is not made of units, or always of one."""
        if kind not in self._units:
            counted = kind in ("paper", "depthwise", "block")
            self._units[kind] = units_for(kind, self.chain, self.fields, self.n) if counted else 0
        return self._units[kind]

    def kernel(self, kind: str, first: int, last: int) -> int:
        """How wide the convolution of a coarse block for those blocks is, where it has one of a width of its own."""
        has_one = kind == "depthwise" or (kind == "bottleneck" and not self._without_kernel(self.chain.blocks[last].y))
        return kernel_for(self.chain.blocks[first].x, self.fields.of(first, last)) if has_one else 0

    def coarse_block(self, kind: str, units: int, kernel: int, first: int, last: int) -> Price:
        """Of a coarse block that stands for blocks ``first`` to ``last``, with the correction around it.

        What a callable gives is not known before it builds: the correction alone.
        """
        blocks = self.chain.blocks[first : last + 1]
        x, y = blocks[0].x, blocks[-1].y
        if kind == "custom":
            price = Price(0, (0, 0), (0, 0))
        elif kind in ("block", "exact"):
            chosen = block_choice(blocks, units) if kind == "block" else tuple(range(len(blocks)))
            costs = [self.costs.blocks[first + i] for i in chosen]
            price = Price(
                sum(blocks[i].parameters for i in chosen) if kind == "block" else 0,
                (sum(cost.flops_forward for cost in costs), sum(cost.flops_backward for cost in costs)),
                plus(*map(self.costs.split, costs)),
            )
        else:
            made = partial(coarse_units, kind, x, y, units, kernel)
            price = self._module((kind, x, y, units, kernel), partial(coarse_cost, kind, x, y, units, kernel), made, x)
        return replace(price, cost=plus(price.cost, self._correction(x, y)))

    def between(self, coarse: Coarse, first: int, stop: int) -> Split:
        """The cost of a coarse block for blocks ``first`` up to ``stop``, before cuts are known.

        Of those between the same two spaces, these blocks are all; a convolution is as wide as it can be; of
        ``"exact"`` it is the correction alone, as the cost of the segment comes with the cut.
        """
        if first >= stop:
            return 0, 0
        x, y = self.chain.blocks[first].x, self.chain.blocks[stop - 1].y
        kind, _ = kind_for(coarse, x, y)
        if kind == "exact":
            return self._correction(x, y)
        kernel = 0 if kind == "bottleneck" and self._without_kernel(y) else LARGEST_KERNEL
        return self.coarse_block(kind, self.units(kind), kernel, first, stop - 1).cost

    def _correction(self, x: Space, y: Space) -> Split:
        """The subtraction before F^j and the addition behind it: an element is written once forward, twice backward."""
        return plus(self._sum(x, difference=True), self._sum(y, difference=False))

    def _sum(self, space: Space, *, difference: bool) -> Split:
        """Of two values of a space, or their difference; measured where the network's costs are."""
        key = space, difference
        if key not in self._sums:
            elements = replace(NO_COST, elements_forward=space.numel, elements_backward=2 * space.numel)
            made = partial(_Sum, difference=difference)
            self._sums[key] = self._cost(elements, made, space, inputs=2)
        return self._sums[key]

    def _without_kernel(self, y: Space) -> bool:
        """Where a bottleneck has none: on maps and vectors, and on tokens that the network mixes by matrices."""
        return y.channel == 0 or (len(y.extent) == 1 and self._family == "residual mixing")

    @functools.cached_property
    def _family(self) -> str | None:
        """What the blocks are."""
        return family_of(self.chain)

    # Modules ---------------------------------------------------------------------------------------------------------

    def _module(
        self,
        key: tuple[Any, ...],
        counted: Callable[[], tuple[int, BlockCost]],
        made: Callable[[], nn.Module],
        x: Space,
        *,
        first: bool = False,
    ) -> Price:
        """Of a module that is counted so and made so, asked for again and again under one key."""
        if key not in self._modules:
            parameters, cost = counted()
            flops = cost.flops_forward, cost.flops_backward
            self._modules[key] = Price(parameters, flops, self._cost(cost, made, x, first=first))
        return self._modules[key]

    def _cost(
        self, counted: BlockCost, made: Callable[[], nn.Module], x: Space, *, first: bool = False, inputs: int = 1
    ) -> Split:
        """As counted, or measured where the network's costs are."""
        if self.costs.unit == "flops":
            return self.costs.split(counted)
        home = next((p.device for p in self.chain.capture.model.parameters()), torch.device("cpu"))
        with seeded_weights(0, "measured"):
            module = made().train(self.chain.capture.model.training)
        return measure_module(module.to(home), x, max(self.chain.capture.batch, 1), first=first, inputs=inputs)


class _Sum(nn.Module):
    """``(a, b) -> a + b``, or their difference."""

    def __init__(self, *, difference: bool) -> None:
        super().__init__()
        self.difference = difference

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b if self.difference else a + b


def plus(*costs: Split) -> Split:
    """The sum of forward costs and that of backward costs."""
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)
