"""Blocks of a segment -> Copies: the coarse block ``"block"``, some of the segment's own blocks with fresh weights."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.errors import CoarseError

__all__ = ["Copies", "block_choice", "copy_blocks", "redraw", "takes_context"]


def block_choice(blocks: Sequence[Block], units: int) -> tuple[int, ...]:
    """Which blocks of a segment ``"block"`` copies, as offsets in order: a chain from its input to its output.

    Every block that changes the space, since nothing else can, and of the commonest of the others (interchangeable
    ones counted together) as many as make up ``units``. Where a segment consists of changes only, as within a dense
    block, this is all of it.
    """
    changes = [i for i, block in enumerate(blocks) if block.x != block.y]
    signatures = Counter(block.exact_signature for block in blocks if block.x == block.y)
    if not signatures:
        return tuple(changes)
    commonest = signatures.most_common(1)[0][0]
    copies = [i for i, block in enumerate(blocks) if block.x == block.y and block.exact_signature == commonest]
    count = max(units - len(changes), 0 if changes else 1)
    return tuple(sorted(changes + copies[:count]))


def copy_blocks(chain: BlockChain, first: int, last: int, offsets: Sequence[int]) -> Copies:
    """Fresh copies of some of the blocks ``first`` to ``last``, each reading its own part of the segment's context."""
    segment = chain.blocks[first : last + 1]
    context = chain.context(first, last)
    blocks = [segment[i] for i in offsets]
    pieces = []
    for block in blocks:
        try:
            piece = copy.deepcopy(chain.piece(block))
        except (RuntimeError, TypeError) as error:
            raise CoarseError(
                f"block {block.name} ({block.kind}) cannot be copied: {error}; "
                'pass coarse="linear", or a callable that builds the coarse block'
            ) from error
        pieces.append(redraw(piece))
    reads = [tuple(context.index(node) for node in block.context) for block in blocks]
    return Copies(pieces, reads, names=[block.name for block in blocks], needs_context=bool(context))


class Copies(nn.Module):
    """``F^j`` made of copies of blocks: each reads its part of the segment's context next to the value.

    ``reads[i]`` are the positions of block i's context in the segment's.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        reads: Sequence[tuple[int, ...]],
        *,
        names: Sequence[str],
        needs_context: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.reads, self.names, self.needs_context = list(reads), list(names), needs_context

    def forward(self, r: Tensor, *context: Any) -> Tensor:
        """The blocks one after the other."""
        for block, reads in zip(self.blocks, self.reads, strict=True):
            r = block(r, *(context[i] for i in reads))
        return r

    def extra_repr(self) -> str:
        """Which blocks were copied."""
        return f"copies of {', '.join(self.names)}"


def takes_context(module: nn.Module) -> bool:
    """Whether a coarse module is called ``F(r, *context)``: copied blocks, or a graph of several inputs."""
    if isinstance(module, fx.GraphModule):
        return len(list(module.graph.find_nodes(op="placeholder"))) > 1
    return bool(getattr(module, "needs_context", False))


def redraw(block: fx.GraphModule) -> fx.GraphModule:
    """A copy of a block with fresh weights from the current random state, on the CPU unless it is on meta; in place.

    Modules draw by their own ``reset_parameters``, what they leave alone is drawn from a normal distribution, and in
    both cases the standard deviation of a weight stays what it was, so the network's own way of scaling is kept.
    Tensors of one value (norms, zeros, layer scales at their start) keep it. Everything becomes trainable.
    """
    _prune(block)
    block.train()
    for parameter in block.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    if any(parameter.is_meta for parameter in block.parameters()):
        return block
    block.to("cpu")
    originals = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    for module in block.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset) and not inspect.signature(reset).parameters:
            reset()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            _redraw_one(parameter, originals[name])
    return block


def _prune(block: fx.GraphModule) -> None:
    """Drop the tensors that a container of the block owns but the block does not read."""
    called = [str(node.target) for node in block.graph.nodes if node.op == "call_module"]
    attributes = {str(node.target) for node in block.graph.nodes if node.op == "get_attr"}
    for path, module in block.named_modules():
        if not any(path == target or path.startswith(target + ".") for target in called):
            for tensors in (module._parameters, module._buffers):
                for name in [name for name in tensors if f"{path}.{name}".lstrip(".") not in attributes]:
                    del tensors[name]


def _redraw_one(parameter: Tensor, before: Tensor) -> None:
    if before.numel() == 0 or bool((before == before.flatten()[0]).all()):
        parameter.copy_(before)
    elif torch.equal(parameter, before):
        parameter.normal_(before.float().mean().item(), before.float().std().item())
    elif parameter.ndim > 1 and (spread := parameter.float().std().item()) > 0:
        parameter.mul_(before.float().std().item() / spread)
