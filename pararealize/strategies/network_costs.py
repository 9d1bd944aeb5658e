"""A chain of blocks and what prices it -> NetworkCosts: seconds and bytes of every part, at any batch size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias, TypeVar

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.cost import Costs, Split
from pararealize.analysis.fields.field import Fields
from pararealize.analysis.operations import ChainOperations
from pararealize.profiles.device import DeviceProfile, Link

__all__ = ["OPTIMIZERS", "NetworkCosts", "Optimizer", "Pricing", "all_reduce", "exposed_reduction"]

N = TypeVar("N", int, float)
Optimizer: TypeAlias = Literal["sgd", "momentum", "adam"]
OPTIMIZERS: Mapping[Optimizer, int] = MappingProxyType({"sgd": 0, "momentum": 1, "adam": 2})  # values a parameter
BUCKET = 25 << 20  # bytes of gradients that are summed at once, as DistributedDataParallel has it
PASSES = 4  # over gradients in memory: each is read and written into a bucket, and out of it again


class Pricing(Protocol):
    """What says the seconds of a network's parts."""

    @property
    def operations(self) -> ChainOperations:
        """Every operation of the network, for its memory."""

    def costs(self, batch: int) -> Costs:
        """Seconds of every block for a batch of that size, and of modules that a plan adds."""


@dataclasses.dataclass(frozen=True)
class NetworkCosts:
    """What the parts of a network take.

    Attributes:
        chain: the network's blocks.
        fields: their receptive fields.
        pricing: what says their seconds.
        profile: of a device; its memory limits what fits.
        link: between devices.
        optimizer: whose state stands beside the parameters.
    """

    chain: BlockChain
    fields: Fields
    pricing: Pricing
    profile: DeviceProfile
    link: Link
    optimizer: Optimizer = "adam"

    @cached_property
    def _costs(self) -> dict[int, Costs]:
        return {}

    def costs(self, batch: int) -> Costs:
        """Of a batch of that size, a training step's loss included in the head; asked for once."""
        if batch not in self._costs:
            costs = self.pricing.costs(batch)
            forward, backward = costs.split(costs.head)
            head = dataclasses.replace(
                costs.head, seconds_forward=forward, seconds_backward=backward + self.profile.step
            )
            self._costs[batch] = dataclasses.replace(costs, head=head)
        return self._costs[batch]

    def costs_on_ranks(self, batch: int) -> Costs:
        """The same where ranks make a step together: what that takes on every host stands in the head, where all wait.

        In front of one rank's segments it would look as if that rank alone had more to do, and be cut for that.
        """
        costs = self.costs(batch)
        forward = (costs.head.seconds_forward or 0.0) + self.link.host.step
        return dataclasses.replace(costs, head=dataclasses.replace(costs.head, seconds_forward=forward))

    def parts(self, batch: int) -> tuple[Split, ...]:
        """Forward and backward seconds of the blocks; the first has the stem's besides, the last one the head's."""
        if batch not in self._parts:
            self._parts[batch] = self._parts_of(batch)
        return self._parts[batch]

    @cached_property
    def _parts(self) -> dict[int, tuple[Split, ...]]:
        return {}

    def _parts_of(self, batch: int) -> tuple[Split, ...]:
        costs = self.costs(batch)
        splits = [list(costs.split(block)) for block in costs.blocks]
        for place, end in ((0, costs.stem), (-1, costs.head)):
            splits[place] = [a + b for a, b in zip(splits[place], costs.split(end), strict=True)]
        return tuple((forward, backward) for forward, backward in splits)

    def step(self, batch: int, *, training: bool = True) -> float:
        """Seconds of one device: the sum of all parts."""
        return sum(forward + backward * training for forward, backward in self.parts(batch))

    def at_batch(self, batch: int) -> BlockChain:
        """The same chain, of which a plan takes ``batch`` for its batch size."""
        return dataclasses.replace(self.chain, capture=dataclasses.replace(self.chain.capture, batch=batch))

    def averaging(self, backward: list[float], gradients: list[int], copies: int) -> float:
        """Seconds by which copies that average their gradients take longer than one of them alone."""
        return exposed_reduction(self.link, backward, gradients, copies) + self.bucketing(gradients, copies)

    def bucketing(self, gradients: Sequence[int], copies: int) -> float:
        """Seconds besides the sums: gradients are written into buckets and out of them, and hosts have their hooks."""
        if copies < 2:
            return 0.0
        host, tensors = self.link.host, self._parameters * len(gradients) / len(self.chain.blocks)
        return PASSES * sum(gradients) / self.profile.bandwidth + host.copies + tensors * host.parameter

    @cached_property
    def _parameters(self) -> int:
        """How many tensors are trained."""
        return sum(parameter.requires_grad for parameter in self.chain.capture.model.parameters())

    # Bytes -----------------------------------------------------------------------------------------------------------

    @cached_property
    def gradients(self) -> tuple[int, ...]:
        """Bytes of the gradients of each block, ends included as in :meth:`parts`."""
        return self._with_ends([part.bytes_gradients for part in self.pricing.operations.parts])

    @cached_property
    def states(self) -> tuple[int, ...]:
        """Bytes of parameters, gradients and the optimiser's state of each block, likewise."""
        copies = 1 + OPTIMIZERS[self.optimizer]
        parts = self.pricing.operations.parts
        return self._with_ends([part.bytes_parameters + copies * part.bytes_gradients for part in parts])

    @cached_property
    def saved(self) -> tuple[float, ...]:
        """Bytes that each block keeps of one sample for the backward pass, likewise."""
        return self._with_ends([part.bytes_saved for part in self.pricing.operations.parts])

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Bytes of parameters and buffers of each block, likewise."""
        return self._with_ends([part.bytes_parameters for part in self.pricing.operations.parts])

    @cached_property
    def interfaces(self) -> tuple[int, ...]:
        """Bytes of one sample of what each block gives."""
        return tuple(block.y.numel * block.y.torch_dtype.itemsize for block in self.chain.blocks)

    @staticmethod
    def _with_ends(parts: list[N]) -> tuple[N, ...]:
        ends = {1: parts[0], len(parts) - 2: parts[-1]}
        if len(parts) == 3:
            return (parts[0] + parts[1] + parts[2],)
        return tuple(parts[i] + ends[i] if i in ends else parts[i] for i in range(1, len(parts) - 1))

    def memory(self, first: int, stop: int, batch: float, *, training: bool = True) -> float:
        """Bytes of blocks ``first`` to ``stop - 1`` on one device, with the activations of so many samples.

        Without training these are the weights, and two of the largest interfaces.
        """
        if not training:
            return sum(self.weights[first:stop]) + 2 * batch * max(self.interfaces[first:stop], default=0)
        return sum(self.states[first:stop]) + batch * sum(self.saved[first:stop])


def all_reduce(link: Link, size: float, devices: int) -> float:
    r"""Seconds of a sum of ``size`` bytes over all devices, which all of them get.

    The faster of a ring (Patarasuk and Yuan, 2009) of :math:`2(p-1)` rounds of :math:`1/p` of the bytes, and of a tree
    up and down, whose pieces follow one another:

    .. math:: \min\Bigl\{ 2(p-1)\bigl(\ell + \tfrac{s}{p\,b}\bigr),\;
                         2 \lceil\log_2 p\rceil \ell + \tfrac{2 s}{b} \Bigr\}
    """
    if devices < 2 or not size:
        return 0.0
    one = link.reduction
    ring = 2 * (devices - 1) * one.seconds(size / devices)
    return min(ring, 2 * (devices - 1).bit_length() * one.latency + 2 * size / one.bandwidth)


def exposed_reduction(link: Link, backward: list[float], gradients: list[int], copies: int) -> float:
    """Seconds by which sums of gradients over copies end after the backward pass that they run beside.

    Gradients become ready from the last part to the first; buckets of 25 MiB follow one another on the link. Where it
    does not work by itself (:attr:`Link.overlap`), the backward pass takes longer by what runs beside it.

    Args:
        link: between copies.
        backward: seconds of the parts of one device, in the network's order.
        gradients: their bytes.
        copies: how many.
    """
    if copies < 2:
        return 0.0
    now, free, waiting, sums = 0.0, 0.0, 0, 0.0
    for seconds, size in zip(reversed(backward), reversed(gradients), strict=True):
        now += seconds
        waiting += size
        if waiting >= BUCKET:
            sums += all_reduce(link, waiting, copies)
            free = max(free, now) + all_reduce(link, waiting, copies)
            waiting = 0
    if waiting:
        sums += all_reduce(link, waiting, copies)
        free = max(free, now) + all_reduce(link, waiting, copies)
    exposed = max(free - now, 0.0)
    return exposed + (1 - link.overlap) * (sums - exposed)
