"""NetworkCosts, devices, batch -> one device, and data parallelism: copies of the network that share the batch."""

from __future__ import annotations

from .network_costs import NetworkCosts
from .strategy import Strategy

__all__ = ["copies_of", "data_parallel", "one_device"]


def one_device(costs: NetworkCosts, batch: int, *, training: bool = True) -> Strategy:
    """One device: the sum of all operations."""
    step, blocks = costs.step(batch, training=training), len(costs.chain.blocks)
    memory = costs.memory(0, blocks, batch, training=training)
    return Strategy(
        name="one device",
        detail="",
        devices=1,
        exact=True,
        step=step,
        work=step,
        memory=memory,
        sent=0.0,
        fits=memory <= costs.profile.memory,
    )


def data_parallel(costs: NetworkCosts, devices: int, batch: int) -> Strategy | None:
    r"""A copy on every device, of :math:`B/r` samples each; at most as many as there are samples.

    The step is that of :math:`B/r` samples, and what of the sums of gradients, which begin while the backward pass goes
    on, is left at its end; see :meth:`~.network_costs.NetworkCosts.averaging`.
    """
    copies = copies_of(batch, devices)
    if copies < 2:
        return None
    share, blocks = batch // copies, len(costs.chain.blocks)
    parts = costs.parts(share)
    exposed = costs.averaging([back for _, back in parts], list(costs.gradients), copies)
    memory = costs.memory(0, blocks, share)
    return Strategy(
        name="data parallel",
        detail=f"{copies} copies of {share}",
        devices=copies,
        exact=True,
        step=costs.step(share) + exposed,
        work=costs.step(batch),
        memory=memory,
        sent=2 * (copies - 1) / copies * sum(costs.gradients),
        fits=memory <= costs.profile.memory,
        copies=copies,
    )


def copies_of(batch: int, devices: int) -> int:
    """The most copies on so many devices that have equally many samples each."""
    return max((copies for copies in range(1, min(batch, devices) + 1) if batch % copies == 0), default=1)
