"""Samples, values at interfaces -> Moments: sums over the rows that maps are fitted to, and over those held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pararealize.analysis.space import Space

from .channel_maps import Moments
from .held_out import SampleParts
from .interfaces import InterfaceValues
from .masks import rows_at

__all__ = ["Columns", "RowValues", "row_sums"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What rows of a map are made of.

    Attributes:
        groups: how many features there are.
        space: of all values.
        device: where the sums are.
    """

    groups: int
    space: Space
    device: torch.device

    def moments(self) -> Moments:
        """Sums over no row yet."""
        return Moments(self.groups, self.space.channels, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowValues:
    """The values of a batch for one map, all ``(batch, *space)``.

    Attributes:
        features: what the map reads.
        given: what is there without the map.
        true: what should be there.
    """

    features: Sequence[Tensor]
    given: Tensor
    true: Tensor


@torch.no_grad()
def row_sums(
    batches: Iterable[SampleParts],
    maps: Sequence[Columns],
    values_of: Callable[[InterfaceValues], Sequence[RowValues]],
) -> list[tuple[Moments, Moments]]:
    """Sums over the samples fitted to, and over those held out, for each of several maps, in one pass.

    Args:
        batches: which of their samples are which; the former serve for both where none are held out.
        maps: what each is made of.
        values_of: from a batch's values to those of each map.
    """
    pairs = [(columns.moments(), columns.moments()) for columns in maps]
    for parts in batches:
        for columns, pair, values in zip(maps, pairs, values_of(parts.values), strict=True):
            for sums, samples in zip(pair, (parts.fitted, parts.held_out), strict=True):
                if samples is not None and len(values.true[samples]):
                    _add(sums, columns, values, samples, parts.values.mask)
    return [(fitted, held if held.count else fitted) for fitted, held in pairs]


def _add(sums: Moments, columns: Columns, values: RowValues, samples: slice, mask: Tensor | None) -> None:
    mask = None if mask is None else mask[samples]
    given, true, *features = (
        rows_at(value[samples], columns.space.channel, mask) for value in (values.given, values.true, *values.features)
    )
    sums.add(features, true.to(sums.sums) - given.to(sums.sums), true)
