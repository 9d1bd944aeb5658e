"""BlockChain -> the family of networks that it belongs to, by which ``evidence_table.py`` lists what was tried."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.inner_look import look_inside
from pararealize.analysis.residual import Residual, residual_of

__all__ = ["FAMILIES", "family_of"]

FAMILIES = ("residual convolutions", "plain convolutions", "attention", "residual mixing")

# functions, and names of methods
_ATTENTION = {
    functional.scaled_dot_product_attention,
    torch._C._nn.scaled_dot_product_attention,
    "scaled_dot_product_attention",
}
_SOFTMAX = {torch.softmax, functional.softmax, "softmax"}
_PRODUCTS = {torch.matmul, torch.bmm, torch.einsum, operator.matmul, "matmul", "bmm"}
_CONVOLUTIONS = {functional.conv1d, functional.conv2d, functional.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}


def family_of(chain: BlockChain) -> str | None:
    """Which of ``FAMILIES`` the blocks belong to, by the commonest of those that keep their space; None for others.

    - ``"attention"``: a product, a softmax and another product, or torch's own attention.
    - ``"residual convolutions"`` and ``"plain convolutions"``: maps, with and without x + f(x).
    - ``"residual mixing"``: x + f(x) on tokens without attention, as in MLP-Mixer.

    A block that is one opaque call is run on fake tensors, to see what it does inside.
    """
    steady = [block for block in chain.blocks if block.x == block.y] or chain.blocks
    commonest = Counter(block.exact_signature for block in steady).most_common(1)[0][0]
    block = next(block for block in steady if block.exact_signature == commonest)
    module_of = chain.capture.graph_module.get_submodule
    called = {node.target for node in block.nodes if node.op in ("call_function", "call_method")}
    calls = [module_of(str(node.target)) for node in block.nodes if node.op == "call_module"]
    modules = [module for call in calls for module in call.modules()]
    opaque = any(not type(call).__module__.startswith("torch.") for call in calls)
    inside = look_inside(chain, block) if opaque else None
    operators = inside.operators if inside is not None else frozenset()
    if _attends(called, modules) or _attends_inside(operators):
        return "attention"
    residual = isinstance(residual_of(chain, block), Residual) or (inside is not None and inside.is_residual)
    convolves = called & _CONVOLUTIONS or any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in modules)
    if convolves or "convolution" in operators:
        return "residual convolutions" if residual else "plain convolutions"
    tokens = len(block.x.extent) == 1 and block.x.channels_last
    return "residual mixing" if residual and tokens else None


def _attends(called: set[Any], modules: list[nn.Module]) -> bool:
    if called & _ATTENTION or any(isinstance(m, nn.MultiheadAttention | nn.TransformerEncoderLayer) for m in modules):
        return True
    softened = called & _SOFTMAX or any(isinstance(module, nn.Softmax) for module in modules)
    return bool(softened and called & _PRODUCTS)


def _attends_inside(operators: frozenset[str]) -> bool:
    """The same by ATen's operators, for a block that is one call."""
    if any("scaled_dot_product" in name for name in operators):
        return True
    # in the place of torch's own attention, which some versions compute by others, stands a safe softmax
    return bool(operators & {"_softmax", "_safe_softmax"} and operators & {"bmm", "baddbmm"})
