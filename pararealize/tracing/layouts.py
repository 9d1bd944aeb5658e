"""A piece's graph -> the same with its first input laid out in memory as the network that was captured has it there.

An adapter, a coarse block or a correction gives the values that belong there, in an order of its own; a ``view`` of the
network's, which was right for the order of the network's own value, would raise (PatchTST).
"""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["lay_out", "order_of"]


def lay_out(graph: fx.Graph) -> None:
    """Copy the activation that a piece is called with into the recorded order of its dimensions, where it has another.

    Nothing is copied where it has that order already, as the network's own value has. Pieces whose activation is laid
    out in the usual way stay as they are: adapters and coarse blocks give that, and channels-last networks keep theirs.
    """
    inputs = graph.find_nodes(op="placeholder")
    first, *_ = inputs
    order = order_of(first.meta.get("val"))
    if order is None or order == tuple(range(len(order))):
        return
    previous = inputs[-1]
    users = [user for user in first.users if previous < user]  # what stands between inputs asks for the device alone
    back = tuple(order.index(i) for i in range(len(order)))
    node = first
    for method, arguments in (("permute", (order,)), ("contiguous", ()), ("permute", (back,))):
        with graph.inserting_after(previous):
            node = previous = graph.call_method(method, (node, *arguments))
        node.meta["region"] = None  # whatever its readers stand in
    for user in users:
        user.replace_input_with(first, node)


def order_of(value: object) -> tuple[int, ...] | None:
    """The dimensions of a tensor from the slowest to the fastest in memory; ``None`` where its memory has gaps."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    strides = [int(stride) for stride in value.stride()]
    order = tuple(sorted(range(value.ndim), key=lambda i: strides[i], reverse=True))
    return order if value.permute(order).is_contiguous() else None
