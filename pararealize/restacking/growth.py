"""Tableau, residual blocks -> what would make a scheme of large coefficients diverge: no normalisation, or dropout."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import fx, nn

from pararealize.analysis.addition import Addition
from pararealize.analysis.residual import Residual
from pararealize.tracing.random_calls import draws
from pararealize.tracing.size_nodes import size_of
from pararealize.tracing.type_nodes import reads_no_value

from .tableaux import Tableau

__all__ = ["dangers", "noise", "normalised_first"]

LARGE = 100.0  # Σ_j |a_ij| from which on sizes matter: 1 for the classical schemes, 2307 for Verner's of order 8
# What hands a factor of its input on to its output, at least in size, and so may stand before the normalisation.
_SCALED_THROUGH = (
    nn.modules.conv._ConvNd, nn.Linear, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.dropout._DropoutNd,
)  # fmt: skip
_FUNCTIONS_THROUGH = {
    torch.relu, F.relu, F.leaky_relu, F.pad, F.conv1d, F.conv2d, F.conv3d, torch.conv2d, F.linear, F.dropout,
    torch.permute, torch.transpose, torch.reshape, torch.flatten, operator.getitem,
    "relu", "relu_", "permute", "transpose", "reshape", "view", "flatten", "contiguous", "to", "float", "roll",
}  # fmt: skip
_FUNCTIONS_NORMS = {
    F.layer_norm, F.batch_norm, F.group_norm, F.instance_norm, F.rms_norm, F.normalize, torch.layer_norm,
}  # fmt: skip


def dangers(table: Tableau, groups: Sequence[tuple[Residual, ...]], module_of: Callable[[str], nn.Module]) -> list[str]:
    """A sentence for each danger that a table of large coefficients would meet in these blocks."""
    if table.amplification < LARGE:
        return []
    residuals = [residual for group in groups for residual in group]
    bare = [r.name for r in residuals if not all(normalised_first(a, module_of) for a in r.additions)]
    noisy = [r.name for r in residuals if any(True for a in r.additions for _ in noise(a, module_of))]
    size = f"{table.name} adds up to {table.amplification:.0f} times an f's value into a later f's input"
    faults = []
    if bare:
        faults.append(f"{size}, and {_subject(bare)} no normalisation at the head of f to take that back")
    if noisy:
        faults.append(f"{size}, and {_subject(noisy)} dropout, whose noise grows alike")
    return faults


def _subject(names: Sequence[str]) -> str:
    """Some names and a verb: ``a, b have``."""
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{listed} {'has' if len(names) == 1 else 'have'}"


def normalised_first(addition: Addition, module_of: Callable[[str], nn.Module]) -> bool:
    """Whether every way into f meets a normalisation before anything that its input's size matters to.

    Convolutions, linear maps, ReLU, pooling and reshaping hand a factor on, and may stand before it.
    """
    inside = set(addition.nodes)
    queue, seen = [addition.x], {addition.x}
    while queue:
        for user in queue.pop().users:
            if user not in inside or user in seen or user.target is size_of or reads_no_value(user):
                continue
            seen.add(user)
            if _is_norm(user, module_of):
                continue
            if user is addition.branch or not _hands_on(user, module_of):
                return False
            queue.append(user)
    return True


def _is_norm(node: fx.Node, module_of: Callable[[str], nn.Module]) -> bool:
    if node.op == "call_module":
        return "norm" in type(module_of(str(node.target))).__name__.lower()
    stack = node.meta.get("nn_module_stack", {})
    within = next(reversed(stack.values()), None)
    return node.target in _FUNCTIONS_NORMS or (within is not None and "norm" in within.__name__.lower())


def _hands_on(node: fx.Node, module_of: Callable[[str], nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(module_of(str(node.target)), _SCALED_THROUGH)
    return node.target in _FUNCTIONS_THROUGH


def noise(addition: Addition, module_of: Callable[[str], nn.Module]) -> Iterator[fx.Node]:
    """The nodes of f that draw random numbers in train mode: dropout and stochastic depth that are not switched off."""
    for node in addition.nodes:
        if node.op != "call_module":
            if draws(node, module_of, training=True):
                yield node
        elif any(_rate(module) for module in module_of(str(node.target)).modules()):
            yield node


def _rate(module: nn.Module) -> float:
    """The probability with which a module drops its input: by the names that torch, timm and others give it."""
    if isinstance(module, nn.MultiheadAttention):
        return float(module.dropout)
    if "drop" not in type(module).__name__.lower() and "stochastic" not in type(module).__name__.lower():
        return 0.0
    rates = (getattr(module, name, None) for name in ("p", "drop_prob", "drop_rate"))
    return next((float(rate) for rate in rates if isinstance(rate, int | float)), 1.0)
