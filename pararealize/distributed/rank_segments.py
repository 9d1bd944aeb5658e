"""SegmentPartition, rank, its parts -> RankSegments: what one rank of a parareal network computes, as functions.

Beside it, what a step of the rank keeps from forward to backward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pararealize.plan.parts import Part, PartKind
from pararealize.plan.peers import Peers
from pararealize.tracing.module_view import Piece

from .activation_checkpoint import checkpointed_segment
from .messages.message_order import PendingMessage
from .partition import SegmentPartition
from .rank_modules import RankModules

__all__ = ["RankSegments", "SegmentValues"]


class RankSegments:
    """The parts of a parareal network that one rank owns, as functions.

    Args:
        partition: which rank owns what.
        rank: this one.
        modules: the rank's own.
        checkpoint_activations: whether segments keep few activations and compute the others anew.

    Attributes:
        first: the rank's first segment, from 1.
        last: its last segment.
        peers: what it passes to whom.
    """

    def __init__(
        self, partition: SegmentPartition, rank: int, modules: RankModules, *, checkpoint_activations: bool = False
    ) -> None:
        self.partition, self.rank = partition, rank
        self.first, self.last = partition.runs[rank]
        self.peers: Peers = partition.peers[rank]
        self._checkpoint_activations = checkpoint_activations
        calls = _calls(modules, partition.parts_of(rank) if checkpoint_activations else ())
        self._calls = {(part.kind, part.j): (part, calls[part.name]) for part in partition.parts_of(rank)}

    def over(self, modules: RankModules) -> RankSegments:
        """The same parts over copies of the modules."""
        return RankSegments(self.partition, self.rank, modules, checkpoint_activations=self._checkpoint_activations)

    @property
    def owns_head(self) -> bool:
        """Whether the network's output is computed here."""
        return self.rank == self.partition.ranks - 1

    def owns(self, kind: PartKind) -> bool:
        """Whether the stem, the context or the head is computed here."""
        return (kind, 0) in self._calls

    def call(self, kind: PartKind, j: int, values: Mapping[str, Any], *activation: torch.Tensor) -> Any:
        """Call a part with its activation, if it has one, and with the values that it reads by name."""
        part, function = self._calls[kind, j]
        return function(*activation, *(values[name] for name in part.reads))

    def last_phases(self) -> dict[str, int]:
        """For each part, by name, the last phase that reaches it.

        Phase 0 differentiates head and coarse blocks, the following ones a segment and its adapter each, from the last
        segment to the first, and one more phase the stem and the context where their graphs end at leaves.
        """
        context = self.last - self.first + 2
        stem = context if self.partition.cuts_stem else context - 1
        phases = {"head": 0, "coarse": 0, "context": context, "stem": stem}
        return {part.name: phases.get(part.kind, self.last - part.j + 1) for part, _ in self._calls.values()}


def _calls(modules: RankModules, checkpointed: Sequence[Part]) -> dict[str, Callable[..., Any]]:
    """A rank's parts as they are called: the modules, or segments that compute their activations anew.

    A coarse block that is a segment itself is the same call under another name.
    """
    segments: dict[str, Callable[..., Any]] = {}
    for part in checkpointed:
        if part.kind == "segment":
            module = modules.parts[part.name]
            assert isinstance(module, Piece)
            segments[part.target] = checkpointed_segment(modules.tree, module)
    return {name: segments.get(modules.targets[name], module) for name, module in modules.parts.items()}


@dataclasses.dataclass(slots=True, kw_only=True)
class SegmentValues:
    """What a rank's step of a parareal network keeps from forward to backward.

    Attributes:
        graph: whether there will be a backward.
        values: inputs, and values of stem and context as the rank's parts read them, by name.
        ends: those of the values whose graphs end here, with these graphs; ``values`` has leaves in their place.
        x: segment inputs with their graphs, by segment; ``x_leaf`` without.
        y: segment outputs with their graphs, by segment; ``y_leaf`` without.
        z_pending: the message that brings z of the ranks before.
        sums_pending: those that bring sums.
        z_leaf: what the first brought.
        sums_leaf: the sum of what the others brought.
        total: this rank's differences and ``sums_leaf``.
        z: the last corrected value of this rank.
        gradient_pending: the message that brings the gradient of ``z``, or of ``total``.
        corrected: z after each of this rank's coarse blocks, by segment.
        output: of the head.
    """

    graph: bool
    values: dict[str, Any]
    ends: dict[str, Any] = dataclasses.field(default_factory=dict)
    x: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    x_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    z_pending: PendingMessage | None = None
    sums_pending: list[PendingMessage] = dataclasses.field(default_factory=list)
    z_leaf: torch.Tensor | None = None
    sums_leaf: torch.Tensor | None = None
    total: torch.Tensor | None = None
    z: torch.Tensor | None = None
    gradient_pending: PendingMessage | None = None
    corrected: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    output: Any = None
