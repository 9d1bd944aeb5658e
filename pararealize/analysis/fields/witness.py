"""A block -> whether it surely sees both sides of its axes, whether its rules can be trusted, and the masks it reads.

All by looking at its operations and at zeros of weights, without running it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import fx, nn

from pararealize.analysis.blocks import Block, BlockChain

from .reach import operation_name

__all__ = ["is_doubtful", "masks_of", "mixes_channels", "sees_both_sides"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONSTANT_PADDING = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
# operations after which what a convolution read on both sides may be read on one alone
_SHIFTS = """
    flip gather getitem index_select narrow pad roll select setitem stack take_along_dim tril triu unbind unfold
"""
# operations whose rule is a cover that may name a side on which they read nothing
_COVERS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d interpolate upsample
"""
_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
# what leaves every axis where it is
_BY_CHANNEL = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.ELU,
    nn.LeakyReLU,
    nn.Dropout,
    nn.Identity,
)
_COVER_MODULES = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Upsample,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
)


def sees_both_sides(chain: BlockChain, block: Block) -> bool:
    """Whether dense convolutions read both sides of every axis, and nothing in the block moves positions about."""
    axes = len(block.x.extent)
    witnessed = [False] * axes
    for node in block.nodes:
        module = _module(chain, node)
        if module is None:
            if node.op != "call_module" and _may_shift(node):
                return False
        elif isinstance(module, _CONVOLUTIONS):
            # behind a reshape that folds an axis into the batch, the axes of a convolution are others
            alike = _batch(node.all_input_nodes[0]) == _batch(block.input)
            if alike and len(module.kernel_size) == axes and _is_dense(_weight(module)):
                spans = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
                same = [span // 2 if module.padding == "same" else 0 for span in spans]
                pads = same if isinstance(module.padding, str) else module.padding
                witnessed = [seen or 0 < p < s for seen, p, s in zip(witnessed, pads, spans, strict=True)]
        elif isinstance(module, (*_CONSTANT_PADDING, nn.modules.conv._ConvTransposeNd)):
            return False
    return axes > 0 and all(witnessed)


def _batch(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return int(value.shape[0]) if isinstance(value, torch.Tensor) and value.ndim else None


def mixes_channels(chain: BlockChain, block: Block) -> bool:
    """Whether a dense layer reads the block's input, as it is or behind norms and activations, along its channels."""
    queue, inside = [block.input], set(block.nodes)
    while queue:
        for node in queue.pop().users:
            module = _module(chain, node) if node in inside else None
            inside.discard(node)
            if isinstance(module, _ATTENTION):
                return block.x.channels_last
            if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
                is_first = isinstance(module, _CONVOLUTIONS) and len(module.kernel_size) == len(block.x.extent)
                channel = 0 if is_first else len(block.x.shape) - 1
                if channel == block.x.channel and getattr(module, "groups", 1) == 1 and _is_dense(_weight(module)):
                    return True
            elif isinstance(module, _BY_CHANNEL):
                queue.append(node)
    return False


def _may_shift(node: fx.Node) -> bool:
    name = operation_name(node)
    if name in ("cat", "concat", "concatenate"):
        return bool((node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) != 1)
    if name == "getitem" and isinstance(node.args[0], fx.Node):
        return isinstance(node.args[0].meta.get("val"), torch.Tensor)
    return name in _SHIFTS.split()


def is_doubtful(chain: BlockChain, node: fx.Node) -> bool:
    """Whether a rule may name a side on which an operation reads nothing."""
    module = _module(chain, node)
    if module is not None:
        mixes = isinstance(module, (nn.Linear, *_CONVOLUTIONS, nn.modules.conv._ConvTransposeNd))
        return isinstance(module, _COVER_MODULES) or (mixes and not _is_dense(_weight(module)))
    if node.op == "call_module":
        return True
    name = operation_name(node)
    if name == "pad":
        return str(node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")) != "constant"
    if name.startswith("conv") or name == "linear":
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not weight.meta.get("trainable"):
            return True
        return not _is_dense(_tensor(chain, str(weight.target)))
    return name in _COVERS.split()


def _module(chain: BlockChain, node: fx.Node) -> nn.Module | None:
    """The module of torch's own that a node calls."""
    if node.op != "call_module" or str(node.target) in chain.capture.opaque:
        return None
    module = chain.capture.graph_module.get_submodule(str(node.target))
    return module if type(module).__module__.startswith("torch.nn") else None


def _tensor(chain: BlockChain, target: str) -> torch.Tensor | None:
    """A parameter, buffer or constant of the model by its qualified name."""
    if target in chain.capture.constants:
        return chain.capture.constants[target]
    path, _, name = target.rpartition(".")
    value = getattr(chain.capture.model.get_submodule(path), name, None)
    return value if isinstance(value, torch.Tensor) else None


def _weight(module: nn.Module) -> torch.Tensor | None:
    """A layer's weight where it is kept; none where it is computed: reading that may change state."""
    weight = module._parameters.get("weight", vars(module).get("weight"))
    return weight if isinstance(weight, torch.Tensor) else None


def _is_dense(weight: Any) -> bool:
    """Whether a weight has no zeros, which a mask would leave; judged by its first filter, and on meta by its kind."""
    return isinstance(weight, torch.Tensor) and (weight.is_meta or bool(weight.detach()[0].ne(0).all()))


def masks_of(chain: BlockChain, block: Block) -> Iterator[Hashable]:
    """Masks and tables that a block reads, and zeros of weights: interchangeable blocks may have different ones."""
    inside = {*block.nodes, block.input, *block.context}
    stack = list(block.nodes)
    while stack:
        node = stack.pop()
        module = _module(chain, node)
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and not _is_dense(weight := _weight(module)):
            sources = list(module.buffers()) if weight is None else [weight]
            yield from (_digest(source.detach().ne(0)) for source in sources)
        elif node.op == "call_module" and module is None:
            buffers = chain.capture.graph_module.get_submodule(str(node.target)).named_buffers()
            yield from ((name, _digest(buffer)) for name, buffer in buffers)
        elif node.op == "get_attr" and (value := _tensor(chain, str(node.target))) is not None:
            yield _digest(value.detach().ne(0) if node.meta.get("trainable") else value)
        stack += [argument for argument in node.all_input_nodes if argument not in inside]
        inside.update(node.all_input_nodes)


def _digest(tensor: torch.Tensor) -> Hashable:
    if tensor.is_meta or tensor.layout is not torch.strided:
        return tuple(tensor.shape)
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=8).hexdigest()
