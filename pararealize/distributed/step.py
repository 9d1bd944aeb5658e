"""What a rank owns and its inputs -> its part of one step, forward and backward.

    forward    x_j = C^j(x), y_j = g^j(x_j)         all segments of all ranks at the same time
               receive z_{j-1}                      (correction.py)
               z_j = y_j + F^{j-1}(z_{j-1} - x_j)   on leaves: this graph is cut off from the one above
               send z_j                             on the last rank: head and loss
    backward   receive dz_j
               the graph of F^{j-1} alone           gives dz_{j-1}, dx_j, dy_j
               send dz_{j-1}                        before the expensive part, so that all ranks differentiate at once
               the graph of C^j and g^j, from dx_j and dy_j

Values of the stem and the context that other ranks read are cut off in the same way; their gradients come back last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pararealize.errors import DistributedError

from .correction import correct, expect, uncorrect
from .p2p import Incoming, Kinds
from .partition import SharedValue
from .rank import Own, Pass, leaf_of, tensors_with_gradients

__all__ = ["backward", "check_loss", "forward"]


def forward(own: Own, inputs: Mapping[str, Any], kinds: Kinds, *, graph: bool) -> Pass:
    """All that a rank computes and sends, up to the network's output on the last rank.

    Args:
        own: the rank.
        inputs: the network's inputs by the names that parts read.
        kinds: what messages look like for inputs like these; filled in the first time.
        graph: whether there will be a backward.
    """
    run = Pass(kinds, graph, dict(inputs))
    coming = [
        own.wire.expect(value.name, 0, own.tag(value.name), kinds)
        for value in own.layout.values
        if own.rank in value.readers
    ]
    expect(own, run)
    for name in ("context", "stem"):
        if name in own.parts:
            _make_values(own, run, name)
    for incoming in coming:
        with own.doing("receive", own.first):
            value = own.wire.take(incoming, kinds)
        flag = next(value.differentiable for value in own.layout.values if value.name == incoming.name)
        run.known[incoming.name] = leaf_of(value) if graph and flag else value
    for j in range(own.first, own.last + 1):
        _fine(own, run, j)
    correct(own, run)
    return run


def _make_values(own: Own, run: Pass, name: str) -> None:
    """Run the context or the stem, and send what others read of it."""
    part = own.layout.parts[name]
    with own.doing(name, own.first):
        result = own.call(name, *(run.known[read] for read in part.reads))
    several = name == "context" or len(part.gives) > 1
    made = dict(zip(part.gives, result if several else (result,), strict=True))
    shared = {value.name: value for value in own.layout.values}
    cut = run.graph and (name == "context" or own.cuts_stem)
    for value_name, value in made.items():
        if cut and value_name in shared and shared[value_name].differentiable:
            run.made[value_name] = value
            run.known[value_name] = leaf_of(value)
        else:
            run.known[value_name] = value
        for reader in shared[value_name].readers if value_name in shared else ():
            with own.doing("send", own.first):
                own.wire.send(value_name, value, reader, own.tag(value_name), run.kinds)


def _fine(own: Own, run: Pass, j: int) -> None:
    """``x_j = C^j(x)`` and ``y_j = g^j(x_j)``, equation (2)."""
    if j > 1:
        (source,) = own.layout.parts[f"C{j}"].reads
        with own.doing("adapter", j):
            x = own.call(f"C{j}", run.known[source])
    else:
        x = run.known["x_1"]
        if "x_1" in run.made and not (own.n > 1 and own.source == "stem"):
            x = x.clone()  # g^1 may change it in place, and it is a leaf
    with own.doing("fine", j):
        y = own.call(f"g{j}", x, *own.context(run, f"g{j}"))
    run.x[j], run.y[j] = x, y
    run.x_leaf[j], run.y_leaf[j] = (leaf_of(x), leaf_of(y)) if run.graph else (x, y)


# Backward ------------------------------------------------------------------------------------------------------------


def backward(own: Own, run: Pass, loss: torch.Tensor | None, share: Callable[[], None]) -> None:
    """All that a rank differentiates: gradients stand in its parameters' ``grad`` behind it.

    Args:
        own: the rank.
        run: its forward.
        loss: on the last rank, what to differentiate.
        share: begins to give the loss to all ranks; it is called where nothing waits for it.
    """
    with own.phase(0):
        uncorrect(own, run, loss)
    share()
    returning = [
        (value, own.wire.expect_back(value.name, reader, own.tag(value.name) + 1, run.kinds))
        for reader in range(1, own.layout.ranks)
        for value in own.layout.values
        if own.rank == 0 and value.differentiable and reader in value.readers
    ]
    for j in range(own.last, own.first - 1, -1):
        with own.phase(own.last - j + 1), own.doing("fine", j, "backward"):
            pairs = [(run.y[j], run.y_leaf[j].grad), (run.x[j], run.x_leaf[j].grad)]
            _differentiate([pair for pair in pairs if j > 1 or pair[0] is run.y[j]])
    _return_values(own, run)
    if own.rank == 0:
        with own.phase(own.last - own.first + 2):
            _unmake_values(own, run, returning)


def _return_values(own: Own, run: Pass) -> None:
    """Send the gradients of the values that came from the first rank."""
    for value in own.layout.values:
        if value.differentiable and own.rank in value.readers:
            gradients = [leaf.grad for leaf in tensors_with_gradients(run.known[value.name])]
            with own.doing("send", own.first, "backward"):
                own.wire.send_back(value.name, gradients, 0, own.tag(value.name) + 1, run.kinds)


def _unmake_values(own: Own, run: Pass, returning: list[tuple[SharedValue, Incoming]]) -> None:
    """Differentiate context and stem, from what this rank's parts gave and what the others sent."""
    for value, incoming in returning:
        with own.doing("receive", own.first, "backward"):
            gradients = own.wire.take_back(incoming)
        for leaf, gradient in zip(tensors_with_gradients(run.known[value.name]), gradients, strict=True):
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    with own.doing("stem", own.first, "backward"):
        _differentiate(
            [
                (made, leaf.grad)
                for name, value in run.made.items()
                for made, leaf in zip(
                    tensors_with_gradients(value), tensors_with_gradients(run.known[name]), strict=True
                )
            ]
        )


def _differentiate(pairs: list[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    found = [(tensor, gradient) for tensor, gradient in pairs if tensor.requires_grad and gradient is not None]
    if found:
        torch.autograd.backward([tensor for tensor, _ in found], [gradient for _, gradient in found])


def check_loss(loss: Any) -> torch.Tensor:
    """A loss that can be differentiated.

    Raises:
        DistributedError: it is none.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        given += "" if getattr(loss, "requires_grad", True) else " without a graph"
        raise DistributedError(
            f"loss_fn gave {given}; it has to return one number that depends on "
            "the output, such as a mean over the batch"
        )
    return loss
