"""Module, inputs -> DryRun: forward and backward of a copy over stand-ins for its tensors, to count or to time.

Stand-ins are fake tensors where operations are counted, copies where they are timed. The module stays as found: neither
tensors nor Python state of its own are touched, for another thread may be using it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pararealize.tracing.network_piece import contents_of, copy_over

__all__ = ["DryRun", "StandIn", "named_tensors", "stand_in_inputs", "with_gradient"]

StandIn: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class DryRun:
    """A copy of a module over stand-ins for its parameters and buffers, to run forward and backward."""

    def __init__(self, module: nn.Module, inputs: list[Any], stand_in: StandIn) -> None:
        self.inputs = inputs
        self.tensors: dict[str, torch.Tensor] = {}
        stand_ins: dict[int, torch.Tensor] = {}  # one for a tensor, so that tied parameters stay tied
        for name, tensor in named_tensors(contents_of(module)):
            if id(tensor) not in stand_ins:
                stand_ins[id(tensor)] = stand_in(tensor.detach()).requires_grad_(tensor.requires_grad)
            self.tensors[name] = stand_ins[id(tensor)]
        self.module = copy_over(module, stand_ins)
        leaves = (*stand_ins.values(), *pytree.tree_leaves(inputs))
        self.leaves = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        self.reset()

    def reset(self) -> None:
        """Copy the inputs for the next forward pass, which may change them in place."""
        self.copies = pytree.tree_map_only(torch.Tensor, torch.clone, tuple(self.inputs))

    def forward(self) -> list[torch.Tensor]:
        """The outputs through which a gradient can flow."""
        result = self.module(*self.copies)
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]

    def backward(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """Gradients of everything that requires one, in the order of ``leaves``."""
        if not outputs or not self.leaves:
            return ()
        seeds = [torch.ones_like(output) for output in outputs]
        return torch.autograd.grad(outputs, self.leaves, seeds, allow_unused=True)


def stand_in_inputs(piece: fx.GraphModule, stand_in: StandIn, *, first: bool, more: int = 0) -> list[Any]:
    """Values for a piece's inputs; a gradient flows into the activation, unless it is the network's first piece.

    Args:
        piece: of a recorded network.
        stand_in: makes a stand-in of a tensor; one on the meta device stands for a shape alone.
        first: whether it is the network's first piece.
        more: samples by which there are more than were recorded, or fewer where it is negative.
    """

    def value(node: fx.Node, activation: bool) -> Any:
        if "val" not in node.meta:
            return node.args[0] if node.args else None
        flows, recorded = activation or bool(node.meta.get("trainable")), node.meta["val"]
        if more:
            recorded = pytree.tree_map(lambda leaf, other: _resized(leaf, other, more), recorded, node.meta["other"])
        return pytree.tree_map_only(torch.Tensor, lambda leaf: with_gradient(stand_in(leaf.detach()), flows), recorded)

    return [value(node, not first and i == 0) for i, node in enumerate(piece.graph.find_nodes(op="placeholder"))]


def _resized(leaf: Any, other: Any, more: int) -> Any:
    """The shape of a tensor with so many more samples, from that of the second recording, which has one more."""
    if not isinstance(leaf, torch.Tensor) or leaf.shape == other.shape:
        return leaf
    shape = [size + (its - size) * more for size, its in zip(leaf.shape, other.shape, strict=True)]
    return torch.empty(shape, dtype=leaf.dtype, device="meta")


def with_gradient(tensor: torch.Tensor, flows: bool) -> torch.Tensor:
    """The tensor, which requires a gradient where one can flow into it."""
    return tensor.requires_grad_(flows and tensor.is_floating_point())


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by every name that they have."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
