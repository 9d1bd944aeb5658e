"""CoarsePlan, BlockChain -> the module ``F^j : X_j → X_{j+1}``, close to ``g^{j+1}`` and much cheaper; and its cost.

Which kinds there are and what each is made of stands in ``kinds.py``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import nn

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.causality import Sides
from pararealize.analysis.cost import BlockCost, count_module
from pararealize.analysis.space import Space
from pararealize.argument_types import typed_arguments
from pararealize.errors import CoarseError
from pararealize.random_state import seeded_weights

from .copies import copy_blocks
from .coverage import LARGEST_KERNEL
from .custom import build_custom
from .kinds import KIND_TABLE, SPACE_KINDS, Coarse
from .spec import CoarsePlan

__all__ = ["build_coarse", "coarse_cost", "coarse_parameters", "coarse_units", "draw_coarse"]


@typed_arguments(CoarseError, "coarse", "chain")  # kinds that read no block do without the chain
def build_coarse(
    plan: CoarsePlan, chain: BlockChain, *, first: int, last: int, seed: int, coarse: Coarse | None = None
) -> nn.Module | None:
    """The module of one coarse plan, or None for ``"exact"``, where segment j+1 itself is to be called.

    Convolutions are drawn with He's variance where a ReLU stands before them and 1 / fan-in where none does. The
    caller's random state stays as found, and one seed gives equal bits on the CPU. Inside ``with
    torch.device("meta")`` nothing is allocated.

    Args:
        plan: which kind, how many units, from which space to which.
        chain: the network's blocks; ``first`` to ``last`` (0-based, inclusive) are those of segment j+1.
        first: first block of segment j+1.
        last: last block of segment j+1.
        seed: of the weights; each j draws its own.
        coarse: the callable where the plan's kind is ``"custom"``.

    Returns:
        A module ``(batch, *x.shape) -> (batch, *y.shape)``, in training mode; it is called ``F(r, *context)`` with
        the segment's context where :func:`~pararealize.coarse.copies.takes_context` says so, and ``F(r)`` otherwise.

    Raises:
        CoarseError: a custom builder's module maps to another shape; a block cannot be copied.
    """
    with seeded_weights(seed, plan.name):
        if plan.kind == "custom":
            if isinstance(coarse, str) or not callable(coarse):
                raise CoarseError(
                    f"{plan.name} was built by a callable, which no plan holds, and coarse is {coarse!r}; pass it as "
                    "coarse=, a callable (segment, x_shape, y_shape) -> nn.Module"
                )
            return build_custom(coarse, plan, chain, first, last)
        kind = KIND_TABLE[plan.kind]
        if kind.blocks is None:
            return coarse_units(plan.kind, plan.x, plan.y, plan.units, plan.kernel, plan.causal)
        if not kind.copies:
            return None
        return copy_blocks(chain, first, last, kind.blocks(chain.blocks[first : last + 1], plan.units))


def draw_coarse(plan: CoarsePlan, *, seed: int) -> nn.Module | None:
    """What :func:`build_coarse` makes, for the kinds that need no network to look at; ``None`` for the others."""
    if plan.kind not in SPACE_KINDS:
        return None
    with seeded_weights(seed, plan.name):
        return coarse_units(plan.kind, plan.x, plan.y, plan.units, plan.kernel, plan.causal)


@lru_cache(maxsize=4096)
def coarse_cost(
    kind: str, x: Space, y: Space, units: int, kernel: int = LARGEST_KERNEL, sides: Sides = ()
) -> tuple[int, BlockCost]:
    """Parameters and cost of a block of one of ``SPACE_KINDS``, counted on the meta device.

    Kinds that are made of the segment's blocks cost what these do. Units behind those that change the space are all
    alike, so that only the first are counted, and the rest by the difference between them.
    """
    few = _units_that_change(x, y) + 1
    if units > few + 1:
        (p, cost), (q, more) = (coarse_cost(kind, x, y, count, kernel, sides) for count in (few, few + 1))
        return p + (units - few) * (q - p), cost.plus(more, times=units - few)
    module = _on_meta_device(kind, x, y, units, kernel, sides)
    return _numel(module), count_module(module, x)


@lru_cache(maxsize=4096)
def coarse_parameters(kind: str, x: Space, y: Space, units: int, kernel: int, sides: Sides = ()) -> int:
    """Parameters of such a block, without its cost: nothing is run, however many units there are."""
    few = _units_that_change(x, y) + 1
    if units > few + 1:
        p, q = (coarse_parameters(kind, x, y, count, kernel, sides) for count in (few, few + 1))
        return p + (units - few) * (q - p)
    return _numel(_on_meta_device(kind, x, y, units, kernel, sides))


def _on_meta_device(kind: str, x: Space, y: Space, units: int, kernel: int, sides: Sides) -> nn.Module:
    with torch.device("meta"):
        return coarse_units(kind, x, y, units, kernel, sides)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _units_that_change(x: Space, y: Space) -> int:
    """At most as many units halve the map, and one changes the channels."""
    ratios = [a / b for a, b in zip(x.extent, y.extent, strict=False) if a > b > 0]
    return max(1, *(math.ceil(math.log2(ratio)) for ratio in ratios), 1)


def coarse_units(kind: str, x: Space, y: Space, units: int, kernel: int, sides: Sides = ()) -> nn.Module:
    """A block of one of ``SPACE_KINDS``, of so many units where it has any, its weights drawn as they come."""
    build = KIND_TABLE[kind].build if kind in KIND_TABLE else None
    if build is None:
        costs = ", ".join(map(repr, SPACE_KINDS))
        raise CoarseError(f"a {kind!r} block has no cost of its own; there are costs of {costs}")
    return build(x, y, units, kernel, sides)
