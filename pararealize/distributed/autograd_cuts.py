"""A value at which autograd's graph is cut -> its leaves, their gradients, and the backward call that goes on there.

A rank's part of a step is cut off from those of other ranks, and into pieces that are differentiated one after the
other: a graph ends at a value, and the next one begins at a leaf with the same contents. Gradients of leaves go back
by message, or to the graph that ended there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from pararealize.tracing.containers import leaves_of, map_leaves

__all__ = ["add_gradients", "as_leaf", "differentiable_tensors", "differentiate"]


def as_leaf(value: Any) -> Any:
    """The value without its graph; its differentiable tensors are leaves whose gradients are kept."""
    return map_leaves(lambda leaf: leaf.detach().requires_grad_() if _is_differentiable(leaf) else leaf, value)


def differentiable_tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a value that can have gradients, in the order in which messages carry these."""
    return [leaf for leaf in leaves_of(value) if _is_differentiable(leaf)]


def add_gradients(leaves: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
    """Add gradients that came from elsewhere to those of leaves."""
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def differentiate(pairs: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    """One backward call from all tensors that have a graph and a gradient; hooks run as in any backward call."""
    chosen = [(tensor, gradient) for tensor, gradient in pairs if tensor.requires_grad and gradient is not None]
    if chosen:
        torch.autograd.backward([tensor for tensor, _ in chosen], [gradient for _, gradient in chosen])


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
