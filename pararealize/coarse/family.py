"""BlockChain -> the family of networks that it belongs to, by which ``evidence_table.py`` lists what was tried."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.residual import Residual, residual_of

__all__ = ["FAMILIES", "family_of"]

FAMILIES = ("residual convolutions", "plain convolutions", "attention", "residual mixing")

_ATTENTION = {functional.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention}
_SOFTMAX = {torch.softmax, functional.softmax}
_PRODUCTS = {torch.matmul, torch.bmm, torch.einsum, operator.matmul}
_CONVOLUTIONS = {functional.conv1d, functional.conv2d, functional.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}


def family_of(chain: BlockChain) -> str | None:
    """Which of ``FAMILIES`` the blocks belong to, by the commonest of those that keep their space; None for others.

    - ``"attention"``: a product, a softmax and another product, or torch's own attention.
    - ``"residual convolutions"`` and ``"plain convolutions"``: maps, with and without x + f(x).
    - ``"residual mixing"``: x + f(x) on tokens without attention, as in MLP-Mixer.
    """
    steady = [block for block in chain.blocks if block.x == block.y] or chain.blocks
    commonest = Counter(block.exact_signature for block in steady).most_common(1)[0][0]
    block = next(block for block in steady if block.exact_signature == commonest)
    if _attends(chain, block):
        return "attention"
    residual = isinstance(residual_of(chain, block), Residual)
    if _convolves(chain, block):
        return "residual convolutions" if residual else "plain convolutions"
    tokens = len(block.x.extent) == 1 and block.x.channels_last
    return "residual mixing" if residual and tokens else None


def _attends(chain: BlockChain, block: Block) -> bool:
    modules = list(_modules(chain, block))
    if any(isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) for module in modules):
        return True
    called = {node.target for node in block.nodes if node.op in ("call_function", "call_method")}
    if called & _ATTENTION or "scaled_dot_product_attention" in called:
        return True
    softened = bool(called & _SOFTMAX or "softmax" in called or any(isinstance(m, nn.Softmax) for m in modules))
    return softened and bool(called & _PRODUCTS or called & {"matmul", "bmm"})


def _convolves(chain: BlockChain, block: Block) -> bool:
    called = {node.target for node in block.nodes if node.op == "call_function"}
    return bool(called & _CONVOLUTIONS) or any(
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in _modules(chain, block)
    )


def _modules(chain: BlockChain, block: Block) -> Iterable[nn.Module]:
    """All modules that a block calls, and those within them."""
    for node in block.nodes:
        if node.op == "call_module":
            yield from chain.capture.graph_module.get_submodule(str(node.target)).modules()
