"""Capture, Tableau -> groups of s residual blocks in a row for a table of s stages; why other blocks are in none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from torch import fx

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.flow import flow_of
from pararealize.analysis.residual import (
    NotResidual,
    Residual,
    Residuals,
    chains_of,
    find_residuals,
    one_calls,
    residual_of,
)
from pararealize.errors import RestackError
from pararealize.tracing.captured import Capture

from .tableaux import Tableau

__all__ = ["Grouping", "Unit", "find_groups"]

Unit = Literal["residual", "block"]  # what an f is


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """The residual blocks of a network, s at a time.

    Attributes:
        groups: the blocks of each step, in the order of the network.
        refusals: residual blocks and sums of activations that are in no group, and why.
    """

    groups: tuple[tuple[Residual, ...], ...]
    refusals: tuple[NotResidual, ...]


def find_groups(captured: Capture, table: Tableau, unit: Unit = "residual") -> Grouping:
    """Groups of s blocks in a row, none within another, from the front of each chain on.

    Where blocks lie within blocks, those in the longer chain are taken, and the outer ones where both are as long.

    Raises:
        RestackError: no chain is as long as the table has stages.

    Example:
        >>> import torch
        >>> from pararealize import capture
        >>> from pararealize.models import resnet20
        >>> from pararealize.restacking.tableaux import tableau
        >>> grouping = find_groups(capture(resnet20(), torch.randn(2, 3, 32, 32)), tableau("midpoint"))
        >>> [[block.name for block in group] for group in grouping.groups]
        [['stage1.0', 'stage1.1'], ['stage2.1', 'stage2.2'], ['stage3.1', 'stage3.2']]
    """
    residuals = _residuals(captured, unit)
    s = table.stages
    groups: list[tuple[Residual, ...]] = []
    refusals = list(residuals.refusals)
    owners: dict[fx.Node, Residual] = {}  # the block of a group that each of its nodes belongs to
    for chain in sorted(chains_of(residuals.blocks), key=lambda run: (-len(run), -len(run[0].nodes))):
        outer = next((owners[block.output] for block in chain if block.output in owners), None)
        if outer is not None:
            refusals += _refuse(chain, f"it lies within the f of {outer.name}")
        elif any(node in owners for block in chain for node in block.nodes):
            refusals += _refuse(chain, "it contains blocks that are rewired")
        else:
            count = len(chain) // s * s
            groups += [chain[i : i + s] for i in range(0, count, s)]
            owners.update((node, block) for block in chain[:count] for node in block.nodes)
            refusals += _refuse(
                chain[count:],
                f"the rest of a chain of {len(chain)}, fewer than the {s} stages of {table.name}"
                if count
                else f"its chain of {len(chain)} is shorter than the {s} stages of {table.name}",
            )
    if not groups:
        raise RestackError(_no_group(captured, table, residuals, refusals))
    position = {node: i for i, node in enumerate(captured.graph.nodes)}
    return Grouping(
        groups=tuple(sorted(groups, key=lambda group: position[group[-1].output])), refusals=tuple(refusals)
    )


def _residuals(captured: Capture, unit: Unit) -> Residuals:
    """The residual blocks, with values read throughout taken as context where that gives more of them."""
    if unit == "block":
        chain = find_blocks(captured)
        residuals = find_residuals(chain.flow)
        results = [residual_of(chain, block, residuals) for block in chain.blocks]
        return Residuals(
            blocks=tuple(result for result in results if isinstance(result, Residual)),
            refusals=tuple(result for result in results if isinstance(result, NotResidual)),
        )
    residuals = find_residuals(flow_of(captured))
    if not residuals.refusals:
        return residuals
    wider = find_residuals(flow_of(captured, broadcast=True))
    return max(residuals, wider, key=lambda some: len(some.blocks))


def _refuse(blocks: Sequence[Residual], reason: str) -> list[NotResidual]:
    return [NotResidual(name=block.name, reason=reason) for block in blocks]


def _no_group(captured: Capture, table: Tableau, residuals: Residuals, refusals: Sequence[NotResidual]) -> str:
    name, calls = type(captured.model).__name__, one_calls(captured)
    if residuals.blocks:
        longest = max(len(chain) for chain in chains_of(residuals.blocks))
        return (
            f"{name} has no chain of {table.stages} residual blocks of one shape, which {table.name} needs for a step; "
            f"its longest has {longest}: take a scheme of at most {longest} stages, such as "
            f"{'rk4' if longest >= 4 else 'midpoint' if longest >= 2 else 'euler'}, or a deeper network{calls}"
        )
    reasons = f": {'; '.join(map(str, refusals[:3]))}" if refusals else ", and no addition of two activations at all"
    return (
        f"{name} has no residual blocks x + f(x){reasons}{calls}. Restack a network that has them; a layer that torch "
        "keeps as one module (nn.TransformerEncoderLayer) has to be written out"
    )
