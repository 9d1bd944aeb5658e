"""A network, inputs of a part -> running statistics of its batch norms, renewed, and as they were found.

Segments that begin with another value than they were trained on normalise by statistics of values that no longer occur.
They can be measured anew on what really arrives. The network in sequence, to which everything is fitted, is still the
original: while it runs, the statistics are those that were found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pararealize.network.module import PararealModule
from pararealize.restacking.batchnorm import average_statistics, running_norms
from pararealize.tracing.network_piece import contents_of

__all__ = ["NormStatistics"]

Buffers: TypeAlias = dict[str, Tensor | None]

# What renewed norms had before, and what they have since: by the former the network in sequence is still the original,
# as long as the latter is what they have.
_ORIGINALS: WeakKeyDictionary[nn.Module, tuple[Buffers, Buffers]] = WeakKeyDictionary()


class NormStatistics:
    """The running statistics of the batch norms in a network's segments and head.

    Norms that several parts share are left alone: no part has statistics of its own there.

    Args:
        net: the network; its statistics as they are now are those that :meth:`as_found` shows, or where an earlier
            calibration renewed them, those before.
    """

    def __init__(self, net: PararealModule) -> None:
        parts: dict[str, nn.Module] = {**net.segments, "head": contents_of(net.head)}
        norms = {name: list(dict.fromkeys(running_norms(part))) for name, part in parts.items()}
        uses = Counter(norm for some in norms.values() for norm in some)
        self._norms = {name: [norm for norm in some if uses[norm] == 1] for name, some in norms.items()}
        self._found: dict[nn.Module, Buffers] = {}
        self._before: dict[nn.Module, tuple[Buffers, bool]] = {}  # the latest renewal, and whether it was the first
        for norm in (norm for some in self._norms.values() for norm in some):
            original, renewed = _ORIGINALS.get(norm, ({}, {}))
            if original and all(_equal(norm._buffers[key], value) for key, value in renewed.items()):
                self._found[norm] = original

    def of(self, name: str) -> list[nn.modules.batchnorm._BatchNorm]:
        """The batch norms of a part that have running statistics, by the part's name: ``g2``, ``head``."""
        return self._norms[name]

    def renew(self, names: Iterable[str], calls: Iterable[Callable[[], object]]) -> bool:
        """Set the statistics of some parts to their averages over calls of the parts, each a batch.

        Batches with one value a channel are left out. False, and the statistics as they were, where none remains.
        """
        names, count = list(names), 0
        norms = [norm for name in names for norm in self._norms[name]]
        for norm in norms:
            self._before[norm] = _copied(norm), norm not in self._found
            self._found.setdefault(norm, self._before[norm][0])
        try:
            count = average_statistics(nn.ModuleList(norms), norms, calls)
        finally:
            if not count:
                self.restore(names)
        return count > 0

    @torch.no_grad()
    def restore(self, names: Iterable[str]) -> None:
        """Give some parts the statistics that they had before :meth:`renew`, renewed earlier or not."""
        for norm in (norm for name in names for norm in self._norms[name]):
            before, is_first = self._before.pop(norm, ({}, False))
            for key, value in before.items():
                if value is not None:
                    norm.get_buffer(key).copy_(value)
            if is_first:
                del self._found[norm]

    @property
    def renewed(self) -> list[str]:
        """The parts with renewed statistics, by an earlier calibration too, in their order."""
        return [name for name, norms in self._norms.items() if not self._found.keys().isdisjoint(norms)]

    @property
    def has_originals(self) -> bool:
        """Whether statistics from before they were renewed are known."""
        return bool(self._found)

    def remember(self) -> None:
        """Let later values of this class know what the network's norms had before they were renewed."""
        for norm, original in self._found.items():
            _ORIGINALS[norm] = original, _copied(norm)

    def give_to(self, other: NormStatistics) -> None:
        """Let the network of another one, a copy of this one, have what :meth:`as_found` shows, for good."""
        for name, norms in self._norms.items():
            for norm, theirs in zip(norms, other.of(name), strict=True):
                for key, value in self._found.get(norm, {}).items():
                    if value is not None:
                        theirs.get_buffer(key).copy_(value)

    @contextmanager
    def as_found(self) -> Iterator[None]:
        """The statistics that were found, in eval mode, for as long as this is open; none is copied.

        But where the network was moved to another element type or device since.
        """
        renewed = {norm: (norm.training, dict(norm._buffers)) for norm in self._found}
        for norm, buffers in self._found.items():
            norm.training = False
            norm._buffers.update({key: _as(value, norm._buffers[key]) for key, value in buffers.items()})
        try:
            yield
        finally:
            for norm, (training, current) in renewed.items():
                norm.training = training
                norm._buffers.update(current)


def _equal(value: Tensor | None, other: Tensor | None) -> bool:
    if value is None or other is None:
        return value is other
    return value.shape == other.shape and torch.equal(value, other.to(value))


def _as(value: Tensor | None, like: Tensor | None) -> Tensor | None:
    return value if value is None or like is None else value.to(like)


def _copied(norm: nn.Module) -> Buffers:
    return {key: None if value is None else value.clone() for key, value in norm._buffers.items()}
