"""Nodes of captured graphs -> which of them draw random numbers, and which of those several pieces would draw anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx, nn

__all__ = ["drawn_repeatedly", "draws"]

_RANDOM = {  # names of functions and methods, without the endings of what works in place or after another's shape
    "rand", "randn", "randint", "randperm", "random", "uniform", "normal", "log_normal", "exponential", "cauchy",
    "geometric", "bernoulli", "multinomial", "poisson", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "rrelu", "gumbel_softmax",
}  # fmt: skip
_RANDOM_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU)


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


def draws(node: fx.Node, module_of: Callable[[str], nn.Module]) -> bool:
    """Whether a node draws random numbers."""
    if node.op == "call_module":
        return any(map(_may_draw, module_of(str(node.target)).modules()))
    name = str(getattr(node.target, "__name__", node.target))
    return node.op in ("call_function", "call_method") and name.removesuffix("_").removesuffix("_like") in _RANDOM


def _may_draw(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return isinstance(module, _RANDOM_MODULES)
