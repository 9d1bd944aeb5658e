"""A network -> why it, run in sequence, is its original no longer, and nobody knows what that had; notes of it.

Everything is fitted to the network in sequence, and it teaches. A fine-tuning changes weights of the original; a
calibration renews running statistics and folds maps into layers, and what these had before is known in the process that
calibrated: statistics of that network alone, layers of its copies, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pararealize.network.module import PararealModule
from pararealize.network.state import changes_of, note_changes, original_state
from pararealize.saving.network_record import weights_digest

from .folded_layers import FoldedLayers
from .norm_statistics import NormStatistics

__all__ = ["lost_original", "noting_fine_tuning", "noting_statistics"]


def lost_original(net: PararealModule, statistics: NormStatistics | None = None, renewed: Sequence[str] = ()) -> str:
    """Why the original cannot be had from a network, in words; nothing where it can.

    Args:
        net: the network.
        statistics: its running statistics, where these are at hand.
        renewed: parts whose statistics a calibration renewed, as its report says.
    """
    changes = changes_of(net)
    if "weights" in changes:
        return "the original's weights were fine-tuned, so that the network in sequence is no longer the original"
    if (renewed or "statistics" in changes) and not (statistics or NormStatistics(net)).has_originals:
        where = f" in {', '.join(renewed[:3])}" if renewed else ""
        return (
            f"running statistics were renewed{where}, so that the network in sequence is no longer the original, and "
            "those from before are not remembered after a reload or in a copy"
        )
    if unknown := FoldedLayers(net).unknown:
        return (
            f"maps were folded into {', '.join(unknown[:3])} before the network was loaded, or trained, so that nobody "
            "knows the original's weights"
        )
    return ""


@contextmanager
def noting_fine_tuning(net: PararealModule) -> Iterator[None]:
    """Note on leaving, by an error too, whether tensors of the original have other values than on entering."""
    before = weights_digest(original_state(net))
    try:
        yield
    finally:
        if not before or weights_digest(original_state(net)) != before:
            note_changes(net, changes_of(net) | {"weights"})


@contextmanager
def noting_statistics(net: PararealModule, statistics: NormStatistics) -> Iterator[None]:
    """Remember on leaving, by an error too, what renewed statistics were before, and note whether there are any."""
    try:
        yield
    finally:
        statistics.remember()
        others = changes_of(net) - {"statistics"}
        note_changes(net, others | {"statistics"} if statistics.has_originals else others)
