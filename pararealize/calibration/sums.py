"""Samples, values at interfaces -> Moments: sums over the rows that maps are fitted to, and over those held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pararealize.analysis.space import Space

from .channel_maps import Moments
from .held_out import SampleParts
from .interfaces import InterfaceValues
from .masks import rows_at

__all__ = ["row_sums"]

# of a batch: the features of each choice, what is there without a map, and what should be; all ``(batch, *space)``
ValuesOf: TypeAlias = Callable[[InterfaceValues], tuple[Sequence[Sequence[Tensor]], Tensor, Tensor]]


@torch.no_grad()
def row_sums(
    batches: Iterable[SampleParts], space: Space, device: torch.device, groups: Sequence[int], values_of: ValuesOf
) -> list[tuple[Moments, Moments]]:
    """Sums over the samples fitted to, and over those held out, for each choice of features, in one pass.

    Args:
        batches: which of their samples are which; the former serve for both where none are held out.
        space: of all values.
        device: where the sums are.
        groups: how many features each choice has.
        values_of: from a batch's values to the features, to what is there, and to what should be.
    """
    pairs = [(Moments(count, space.channels, device), Moments(count, space.channels, device)) for count in groups]
    for parts in batches:
        choices, w, true = values_of(parts.values)
        for number, samples in enumerate((parts.fitted, parts.held_out)):
            if samples is None or not len(true[samples]):
                continue
            mask = None if parts.values.mask is None else parts.values.mask[samples]
            w_rows, true_rows = (rows_at(value[samples], space.channel, mask) for value in (w, true))
            for pair, features in zip(pairs, choices, strict=True):
                sums = pair[number]
                missing = true_rows.to(sums.sums) - w_rows.to(sums.sums)
                sums.add([rows_at(value[samples], space.channel, mask) for value in features], missing, true_rows)
    return [(fitted, held if held.count else fitted) for fitted, held in pairs]
