"""Nodes of captured graphs -> which of them draw random numbers, and which of those several pieces would draw anew."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from .merging import by_mode

__all__ = ["drawn_repeatedly", "draws"]

_RANDOM = {  # functions in Python that call operations which draw; the operations themselves are told by their tags
    "dropout1d", "dropout2d", "dropout3d", "gumbel_softmax", "multi_head_attention_forward", "fractional_max_pool2d",
    "fractional_max_pool3d", "fractional_max_pool2d_with_indices", "fractional_max_pool3d_with_indices",
    "kaiming_uniform_", "svd_lowrank", "pca_lowrank", "lobpcg",
}  # fmt: skip
_DROPOUTS = (
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
)
# Where a function takes the rate at which it drops, and whether it is to; it draws nothing at 0, or where it is not.
_RATES = {**dict.fromkeys(_DROPOUTS, 1), "scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
_SWITCHES = {**dict.fromkeys(_DROPOUTS, 2), "rrelu": 3, "multi_head_attention_forward": 13}
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_RATES |= dict.fromkeys(_RECURRENT, 5)
_SWITCHES |= dict.fromkeys(_RECURRENT, 6)
_RATE_NAMES, _SWITCH_NAMES = ("p", "dropout_p", "dropout"), ("training", "train")

_IN_TRAIN_MODE = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.MultiheadAttention, nn.RNNBase)
_IN_BOTH_MODES = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def drawn_repeatedly(graphs: Mapping[str, fx.Graph], module_of: Callable[[str], nn.Module]) -> list[str]:
    """The random numbers that several of the pieces would draw, each anew: a sentence for each.

    A copied node shares the value that was recorded for the original, which tells that the two are one call.
    """
    copies: dict[int, dict[str, str]] = {}  # for each call, its name in each of the pieces
    for piece, graph in graphs.items():
        for node in graph.nodes:
            if draws(node, module_of):
                copies.setdefault(id(node.meta["val"]), {})[piece] = node.name
    return [f"{next(iter(names.values()))} in {', '.join(names)}" for names in copies.values() if len(names) > 1]


def draws(node: fx.Node, module_of: Callable[[str], nn.Module], *, training: bool | None = None) -> bool:
    """Whether a node draws random numbers.

    Args:
        node: of a captured graph.
        module_of: gives the module of a qualified name.
        training: the mode in which it is to draw; where it is left out, either one.
    """
    if node.op == "call_module":
        return any(_may_draw(module, training) for module in module_of(str(node.target)).modules())
    if node.op not in ("call_function", "call_method") or not _is_random(node.target):
        return False
    return any(_is_switched_on(node, mode) for mode in ((True, False) if training is None else (training,)))


def _may_draw(module: nn.Module, training: bool | None) -> bool:
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout == 0:
        return False
    return isinstance(module, _IN_BOTH_MODES) or (training is not False and isinstance(module, _IN_TRAIN_MODE))


def _is_random(target: Any) -> bool:
    """Whether it is one of the functions above, or an operation marked as one that draws: torch's or the user's own."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _is_marked(target)
    return _name(target) in _RANDOM or _is_marked_in_torch(_name(target))


@functools.cache
def _is_marked_in_torch(name: str) -> bool:
    packet = None if name.startswith("__") else getattr(torch.ops.aten, name, None)
    return isinstance(packet, torch._ops.OpOverloadPacket) and _is_marked(packet)


def _is_marked(operation: torch._ops.OpOverload[..., Any] | torch._ops.OpOverloadPacket[..., Any]) -> bool:
    if isinstance(operation, torch._ops.OpOverloadPacket):
        return any(_is_marked(getattr(operation, name)) for name in operation.overloads())
    return torch.Tag.nondeterministic_seeded in operation.tags


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _is_switched_on(node: fx.Node, training: bool) -> bool:
    """Whether a call of such a function is neither at a rate of 0 nor told not to drop, in one mode."""
    name = _name(node.target).removesuffix("_")
    rate = switch = None
    if name in _RATES:
        rate = _argument(node, _RATES[name], _RATE_NAMES, training)
    if name in _SWITCHES:
        switch = _argument(node, _SWITCHES[name], _SWITCH_NAMES, training)
    if rate is None and name == "scaled_dot_product_attention":  # the one that drops nothing unless it is told to
        return False
    return switch is not False and not (isinstance(rate, int | float) and rate == 0)


def _argument(node: fx.Node, position: int, names: tuple[str, ...], training: bool) -> Any:
    """An argument of a call, as one mode has it; ``None`` where it is not passed."""
    passed = [node.kwargs[name] for name in names if name in node.kwargs] or node.args[position : position + 1]
    value = passed[0] if passed else None
    if isinstance(value, fx.Node) and value.target is by_mode:
        return value.args[1 if training else 2]
    if isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target).split(".")[-1] == "training":
        return training
    return value
