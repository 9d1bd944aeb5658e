"""A chain -> the layer at each block's end whose output does nothing but add to the stream, where there is one.

s ───────────────────────────(+)── y
     z ── layer ── [dropout] ──┘          y = s + W z + a: a map of that sum's second term fits into W and a
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from pararealize.tracing.hooks import hook_of

from .addition import is_addition
from .blocks import Block, BlockChain
from .space import Space

__all__ = ["layers_at_ends"]

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # the identity in eval mode


def layers_at_ends(chain: BlockChain) -> tuple[str, ...]:
    """A linear layer, or a convolution without groups, for every block, by qualified name; empty where it has none.

    The block ends with a sum of which it is one term, perhaps behind dropout; nothing else reads its output, its
    channels are those of the block's output, and nothing else in the network uses its weights.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
        >>> layers_at_ends(chain)[1]
        'stage1.1.conv2'
    """
    readers = _readers(chain)
    return tuple(_layer_at_end(chain, block, readers) for block in chain.blocks)


def _readers(chain: BlockChain) -> dict[int, set[fx.Node]]:
    """The nodes that read a parameter, by its ``id``."""
    model = chain.capture.graph_module
    readers: dict[int, set[fx.Node]] = {}
    for node in chain.capture.graph.nodes:
        if node.op == "call_module":
            for parameter in model.get_submodule(str(node.target)).parameters():
                readers.setdefault(id(parameter), set()).add(node)
        elif node.op == "get_attr":
            value: object = model
            for name in str(node.target).split("."):
                value = getattr(value, name, None)
            readers.setdefault(id(value), set()).add(node)
    return readers


def _layer_at_end(chain: BlockChain, block: Block, readers: Mapping[int, set[fx.Node]]) -> str:
    node = block.output
    while _is_call_of(chain, node, (nn.Identity,)) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if len(node.users) != 1:
            return ""
    if not is_addition(node):
        return ""
    for term in node.all_input_nodes:
        layer = _layer(chain, term, node, block.y)
        if layer is not None and all(readers[id(weight)] == {layer} for weight in _module(chain, layer).parameters()):
            return str(layer.target)
    return ""


def _layer(chain: BlockChain, node: fx.Node, sum_node: fx.Node, space: Space) -> fx.Node | None:
    """The call of a layer that gives a term of a sum, and nothing else."""
    if len(sum_node.all_input_nodes) != 2 or _shape(node) is None or _shape(node) != _shape(sum_node):
        return None
    while _is_dropout(chain, node) and len(node.users) == 1:
        node = node.all_input_nodes[0]
    if node.op != "call_module" or len(node.users) != 1:
        return None
    return node if _fits(_module(chain, node), space) else None


def _module(chain: BlockChain, node: fx.Node) -> nn.Module:
    return chain.capture.graph_module.get_submodule(str(node.target))


def _fits(layer: nn.Module, space: Space) -> bool:
    """Whether its outputs are the channels of the space, and its weights are all that there is to it."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and type(layer) in _CONVOLUTIONS:
        fits = space.channel == 0 and _CONVOLUTIONS[type(layer)] == len(space.extent) and layer.groups == 1
        channels = layer.out_channels
    elif isinstance(layer, nn.Linear) and type(layer) is nn.Linear:
        fits, channels = space.channel == len(space.shape) - 1, layer.out_features
    else:
        return False
    own = set(layer._parameters) == {"weight", "bias"} and not layer._forward_hooks and not layer._forward_pre_hooks
    return fits and own and channels == space.channels


def _is_dropout(chain: BlockChain, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is F.dropout and len(node.all_input_nodes) == 1
    return _is_call_of(chain, node, (nn.Identity, *_DROPOUTS)) and len(node.all_input_nodes) == 1


def _is_call_of(chain: BlockChain, node: fx.Node, types: tuple[type[nn.Module], ...]) -> bool:
    if node.op != "call_module":
        return False
    module = _module(chain, node)
    return type(module) in types and hook_of(module) is None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
