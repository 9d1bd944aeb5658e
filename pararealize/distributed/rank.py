"""What a rank owns, how it reaches the others, and what a step keeps from forward to backward."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pararealize.plan.communication import Peers
from pararealize.plan.recording import StepRecording

from .gradients import Replicas
from .p2p import Incoming, Kinds, Watching, Wire
from .partition import Partition, SegmentPartition

__all__ = ["Own", "OwnParts", "Pass", "leaf_of", "tensors_with_gradients"]

_LETTERS = {
    "adapter": "C^{j}",
    "fine": "g^{j}",
    "coarse": "F^{i}",
    "difference": "y_{j} - x_{j}",
    "sum": "s_{j}",
    "send": "send z_{j}",
    "receive": "receive",
    "send sum": "send s_{j}",
    "receive sum": "receive s_{j}",
}


@dataclasses.dataclass(slots=True, kw_only=True)
class OwnParts:
    """What a rank owns of whatever network, how it reaches the others, and who looks on.

    Attributes:
        layout: who owns what.
        rank: this one, in the parareal group.
        parts: modules by name.
        wire: messages.
        watch: is told of each action.
        replicas: averages over dp ranks, where there are any and they are to be averaged.
        recording: is written to, where there is one.
    """

    layout: Partition
    rank: int
    parts: Mapping[str, nn.Module]
    wire: Wire
    watch: Watching
    replicas: Replicas | None = None
    recording: StepRecording | None = None

    @property
    def first(self) -> int:
        """The first segment, or interval, of this rank."""
        return self.layout.runs[self.rank][0]

    @property
    def last(self) -> int:
        """The last segment, or interval, of this rank."""
        return self.layout.runs[self.rank][1]

    @property
    def is_last(self) -> bool:
        """Whether the head is here."""
        return self.rank == self.layout.ranks - 1

    def phases(self) -> dict[str, int]:
        """For each part, the number of the last backward call that reaches it."""
        raise NotImplementedError

    @contextlib.contextmanager
    def telling(self, words: str, action: str, j: int, direction: str) -> Iterator[None]:
        """Around an action: who watches is told in words, who records by its kind and j."""
        self.watch.doing(f"{words} {direction}")
        if self.recording is None:
            yield
        else:
            with self.recording.during(j, action, direction):
                yield

    @contextlib.contextmanager
    def phase(self, number: int) -> Iterator[None]:
        """Around one backward call."""
        if self.replicas is None:
            yield
            return
        self.replicas.begin_phase(number)
        yield
        self.replicas.end_phase()


@dataclasses.dataclass(slots=True, kw_only=True)
class Own(OwnParts):
    """What a rank owns of a parareal network.

    Attributes:
        layout: who owns what.
        n: segments of the network.
        source: what adapters read.
        calls: how parts are called: the modules themselves, or their recomputing forms.
        peers: the ranks that it exchanges z and sums with.
    """

    layout: SegmentPartition
    n: int
    source: str
    calls: Mapping[str, Callable[..., Any]]
    peers: Peers

    def tag(self, name: str) -> int:
        """A number for each message, even forward; the next odd one is its gradient's. A rank sends z_j or s_j."""
        names = [value.name for value in self.layout.values]
        return 2 * (names.index(name) if name in names else len(names) + int(name[2:]))

    def call(self, name: str, *args: Any) -> Any:
        """Call a part."""
        return self.calls[name](*args)

    def context(self, run: Pass, name: str) -> list[Any]:
        """What a part reads beside its activation."""
        return [run.known[read] for read in self.layout.parts[name].reads]

    def doing(self, action: str, j: int, direction: str = "forward") -> contextlib.AbstractContextManager[None]:
        """Around an action on segment j."""
        return self.telling(_LETTERS.get(action, action).format(j=j, i=j - 1), action, j, direction)

    def phases(self) -> dict[str, int]:
        """For each part, the number of the last backward call that reaches it: coarse and head, segments, stem."""
        found = {}
        for name in self.parts:
            if name in ("stem", "context"):
                found[name] = self.last - self.first + 2
            elif name[0] in "Cg" and name[1:].isdigit():
                found[name] = self.last - int(name[1:]) + 1
            else:
                found[name] = 0
        if "stem" in found and not self.cuts_stem:
            found["stem"] = found["g1"]
        return found

    @property
    def cuts_stem(self) -> bool:
        """Whether others than g^1 read what the stem gives, so that its graph is cut off."""
        return self.source == "stem" or len(self.layout.parts["stem"].gives) > 1


@dataclasses.dataclass(slots=True)
class Pass:
    """What a step keeps from forward to backward.

    Attributes:
        kinds: of the messages.
        graph: whether there is a backward.
        known: inputs and values of stem and context by name, as the rank's parts read them.
        made: those of the values that this rank made, with their graphs.
        x: segment inputs with their graphs, by segment; ``x_leaf`` without.
        y: segment outputs with their graphs, by segment; ``y_leaf`` without.
        z_coming: the message that brings z of the ranks before.
        sums_coming: those that bring sums.
        z_in: what the first brought, a leaf.
        sums_in: the sum of what the others brought, a leaf.
        total: this rank's differences and ``sums_in``.
        z: the last corrected value of this rank.
        gradient: the message that brings the gradient of ``z``, or of ``total``.
        corrected: z after each of this rank's coarse blocks, by segment.
        output: of the head.
    """

    kinds: Kinds
    graph: bool
    known: dict[str, Any]
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    x: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    x_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    z_coming: Incoming | None = None
    sums_coming: list[Incoming] = dataclasses.field(default_factory=list)
    z_in: torch.Tensor | None = None
    sums_in: torch.Tensor | None = None
    total: torch.Tensor | None = None
    z: torch.Tensor | None = None
    gradient: Incoming | None = None
    corrected: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    output: Any = None


def leaf_of(value: Any) -> Any:
    """The value without its graph, whose gradient is kept."""
    return pytree.tree_map(
        lambda leaf: leaf.detach().requires_grad_() if _has_gradient(leaf) else leaf,
        value,
    )


def tensors_with_gradients(value: Any) -> list[torch.Tensor]:
    """The tensors of a value that have gradients, in the order in which messages carry them."""
    return [leaf for leaf in pytree.tree_leaves(value) if _has_gradient(leaf)]


def _has_gradient(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
