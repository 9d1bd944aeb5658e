"""SegmentPartition, rank, its parts -> RankSegments: what one rank of a parareal network computes, as functions.

Beside it, what a step of the rank keeps from forward to backward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from pararealize.plan.parts import Part, PartKind
from pararealize.plan.peers import Peers
from pararealize.plan.window_ranks import WindowRanks
from pararealize.tracing.module_view import Piece

from .activation_checkpoint import checkpointed_segment
from .messages.message_order import PendingMessage
from .partition import SegmentPartition
from .rank_modules import RankModules

__all__ = ["PartCaller", "RankSegments", "SegmentValues", "WindowSegments", "WindowValues", "call_part"]

PartCaller: TypeAlias = Callable[[Part, Callable[..., Any], tuple[Any, ...]], Any]


def call_part(_: Part, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a part as it is."""
    return function(*arguments)


class RankSegments:
    """The parts of a parareal network that one rank owns, as functions.

    Args:
        partition: which rank owns what.
        rank: this one.
        modules: the rank's own.
        checkpoint_activations: whether segments keep few activations and compute the others anew.

    Attributes:
        windows: its segments, window by window; in some it may have none.
        first: what its own actions besides those are recorded under: its first segment.
        caller: calls every part, ``caller(part, function, arguments)``; in a step something else may take its place,
            such as what replays a graph of the part.
    """

    def __init__(
        self, partition: SegmentPartition, rank: int, modules: RankModules, *, checkpoint_activations: bool = False
    ) -> None:
        self.partition, self.rank = partition, rank
        self.first = partition.runs[rank][0]
        self.caller: PartCaller = call_part
        self._checkpoint_activations = checkpoint_activations
        calls = _calls(modules, partition.parts_of(rank) if checkpoint_activations else ())
        self._calls = {(part.kind, *part.index): (part, calls[part.name]) for part in partition.parts_of(rank)}
        self.windows = tuple(
            WindowSegments(segments=self, before=before, ranks=ranks, after=after)
            for before, ranks, after in zip(
                [None, *partition.windows], partition.windows, [*partition.windows[1:], None], strict=False
            )
        )

    def over(self, modules: RankModules) -> RankSegments:
        """The same parts over copies of the modules."""
        return RankSegments(self.partition, self.rank, modules, checkpoint_activations=self._checkpoint_activations)

    @property
    def owns_head(self) -> bool:
        """Whether the network's output is computed here."""
        return self.rank == self.partition.ranks - 1

    def owns(self, kind: PartKind, j: int = 0, *, m: int = 0) -> bool:
        """Whether a part is computed here, such as the stem, the context or the head."""
        return (kind, m, j) in self._calls

    def call(self, kind: PartKind, j: int, values: Mapping[str, Any], *activation: torch.Tensor, m: int = 0) -> Any:
        """Call a part with its activation, if it has one, and with the values that it reads by name."""
        part, function = self._calls[kind, m, j]
        return self.caller(part, function, (*activation, *(values[name] for name in part.reads)))

    def reads(self, kind: PartKind, j: int, *, m: int = 0) -> tuple[str, ...]:
        """The names of the values that a part reads."""
        return self._calls[kind, m, j][0].reads

    def last_phases(self) -> dict[str, int]:
        """For each part, by name, the last phase that reaches it.

        Phase 0 differentiates head and coarse blocks of the last window, the following ones a segment and its adapter
        each, from the last segment to the first; then come coarse blocks and segments of the window before, and so on.
        One more phase is for the stem and the context where their graphs end at leaves.
        """
        phases: dict[str, int] = {}
        parts = [part for part, _ in self._calls.values()]
        for window in reversed(self.windows):
            for part in parts:
                if part.kind in ("coarse", "segment", "adapter", "correction") and part.m == window.m:
                    phases[part.name] = self.phase_of(window) + (
                        0 if part.kind == "coarse" else window.last - part.j + 1
                    )
        context = self.phase_of(None)
        stem = context if self.partition.cuts_stem else context - 1
        ends = {"head": 0, "context": context, "stem": stem}
        return {part.name: phases.get(part.name, ends.get(part.kind, 0)) for part in parts}

    def phase_of(self, window: WindowSegments | None) -> int:
        """The phase in which the coarse blocks of a window are differentiated; without one, stem and context."""
        later = self.windows[self.windows.index(window) + 1 :] if window is not None else self.windows
        return sum(1 + len(one.run) for one in later if one.run)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowSegments:
    """The segments of one window that a rank owns.

    Attributes:
        segments: all of the rank's.
        before: the same as ``ranks``, of the window before; ``None`` for the first one.
        ranks: which rank has which segments of the window.
        after: the same of the next window; ``None`` for the last one, behind which is the head.
    """

    segments: RankSegments
    before: WindowRanks | None
    ranks: WindowRanks
    after: WindowRanks | None

    @property
    def m(self) -> int:
        """The window, from 1; 0 where there is one alone."""
        return self.ranks.m

    @property
    def run(self) -> range:
        """The rank's segments j of the window; empty where it has none."""
        return self.ranks.runs[self.segments.rank]

    @property
    def first(self) -> int:
        """The first of them."""
        return self.run[0]

    @property
    def last(self) -> int:
        """The last of them."""
        return self.run[-1]

    @property
    def owns_end(self) -> bool:
        """Whether the rank has the window's last segment, and no all-reduce gives w to all ranks at once."""
        return bool(self.run) and self.run[-1] == self.ranks.n and not self.ranks.all_reduces

    @property
    def readers(self) -> tuple[int, ...]:
        """The other ranks that this one sends w to, the window's output."""
        if self.after is None or not self.owns_end:
            return ()
        return tuple(rank for rank in self.after.members if rank != self.segments.rank)

    @property
    def peers(self) -> Peers:
        """What the rank passes to whom within the window."""
        return self.ranks.peers[self.segments.rank]

    def call(self, kind: PartKind, j: int, values: Mapping[str, Any], *activation: torch.Tensor) -> Any:
        """Call a part of the window: see :meth:`RankSegments.call`."""
        return self.segments.call(kind, j, values, *activation, m=self.m)


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
        windows: of each window that there will be a backward of.
        output: of the head.
    """

    graph: bool
    values: dict[str, Any]
    ends: dict[str, Any] = dataclasses.field(default_factory=dict)
    windows: list[WindowValues] = dataclasses.field(default_factory=list)
    output: Any = None


@dataclasses.dataclass(slots=True, kw_only=True)
class WindowValues:
    """What a rank's step keeps of one window.

    Attributes:
        graph: whether there will be a backward.
        begin: what the window begins with, w of the window before, as a leaf; ``None`` in the first window.
        x: segment inputs with their graphs, by segment; ``x_leaf`` without.
        y: segment outputs with their graphs, by segment; ``y_leaf`` without.
        begin_pending: the message that brings ``begin``.
        z_pending: the message that brings z of the ranks before.
        sums_pending: those that bring sums; of an all-reduce, the parts of the other ranks.
        z_leaf: what the first brought.
        sums_leaf: the sum of what the others brought.
        total: this rank's differences and ``sums_leaf``.
        z: the last corrected value of this rank.
        gradient_pending: the message that brings the gradient of ``z``, or of ``total``.
        gradients_pending: on the rank of the window's last segment, those that bring gradients of the window's output.
        corrected: z after each of this rank's coarse blocks, by segment.
    """

    graph: bool
    begin: torch.Tensor | None = None
    x: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    x_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    begin_pending: PendingMessage | None = None
    z_pending: PendingMessage | None = None
    sums_pending: list[PendingMessage] = dataclasses.field(default_factory=list)
    z_leaf: torch.Tensor | None = None
    sums_leaf: torch.Tensor | None = None
    total: torch.Tensor | None = None
    z: torch.Tensor | None = None
    gradient_pending: PendingMessage | None = None
    gradients_pending: list[PendingMessage] = dataclasses.field(default_factory=list)
    corrected: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
