r"""Operations, DeviceProfile, batch -> seconds: the larger of computing and of moving memory, and launches.

    seconds of an operation   max(flops / peak, bytes / bandwidth) + launches · latency
    peak                      of its element type, tf32 where it is a convolution in float32
    bytes                     read and written; those of activations grow with the batch, those of weights do not

The roofline model is that of Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures" (2009). Operations that a compiler would fuse are taken one by one, as eager torch runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.cost import BlockCost, Costs, Split, count_costs
from pararealize.analysis.operations import (
    ChainOperations,
    Operation,
    PartOperations,
    list_chain_operations,
    list_module_operations,
)
from pararealize.analysis.space import Space

from .device import DeviceProfile

__all__ = ["Roofline"]


@dataclass(frozen=True)
class Roofline:
    """What the parts of one network take on a device, at any batch size, without it.

    Attributes:
        chain: the network's blocks.
        profile: of the device.
        captured: whether operations are replayed as a captured graph, with its launch latency.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> from pararealize.profiles import Roofline, device_profile
        >>> chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
        >>> roofline = Roofline(chain, device_profile("a100"))
        >>> one, many = roofline.costs(1).total, roofline.costs(1024).total
        >>> one < many < 1024 * one
        True
    """

    chain: BlockChain
    profile: DeviceProfile
    captured: bool = False

    @cached_property
    def operations(self) -> ChainOperations:
        """Of stem, blocks and head, listed once."""
        return list_chain_operations(self.chain)

    @cached_property
    def counts(self) -> Costs:
        """The same as sums, which a plan shows."""
        return count_costs(self.chain)

    def costs(self, batch: int) -> Costs:
        """Predicted seconds of every block for a batch of that size, and of modules that a plan adds."""
        counts, listed = self.counts, self.operations
        known: dict[int, Split] = {}

        def priced(cost: BlockCost, part: PartOperations) -> BlockCost:
            if id(part) not in known:
                known[id(part)] = self.seconds(part, batch)
            forward, backward = known[id(part)]
            return replace(cost, seconds_forward=forward, seconds_backward=backward)

        return replace(
            counts,
            unit="seconds",
            stem=priced(counts.stem, listed.stem),
            blocks=tuple(map(priced, counts.blocks, listed.blocks)),
            head=priced(counts.head, listed.head),
            notes=counts.notes,
            module_seconds=self.module_seconds,
        )

    def seconds(self, part: PartOperations, batch: int) -> Split:
        """Of one call of a part, forward and backward."""
        return self._sum(part.forward, batch), self._sum(part.backward, batch)

    def module_seconds(
        self,
        key: Hashable,
        build: Callable[[], nn.Module],
        x: Space,
        batch: int,
        *,
        first: bool = False,
        inputs: int = 1,
    ) -> Split:
        """Of one call of an adapter or a coarse block, whose operations are listed once for each key."""
        if key not in self._modules:
            with torch.device("meta"):
                module = build()
            self._modules[key] = list_module_operations(module, x, first=first, inputs=inputs)
        return self.seconds(self._modules[key], batch)

    @cached_property
    def _modules(self) -> dict[Hashable, PartOperations]:
        """The operations of modules that were asked for before: plans for other n and batches have the same."""
        return {}

    def _sum(self, operations: Iterable[Operation], batch: int) -> float:
        profile = self.profile
        launch = profile.launch_captured if self.captured else profile.launch
        total = 0.0
        for operation in operations:
            computing = batch * operation.flops / profile.peak(operation.kind) if operation.flops else 0.0
            moving = (batch * operation.bytes_sample + operation.bytes_fixed) / profile.bandwidth
            total += max(computing, moving) + operation.kernels * launch
        return total
