"""A part of a network: which it is, what it is called, what it reads and what it gives. Plain data, no modules.

===========  ===========  ==========  ==========================
kind         in formulas  name        called in the graph as
===========  ===========  ==========  ==========================
stem         C^1          ``stem``    ``stem``
context                   ``context`` ``context``
adapter      C^j, j > 1   ``C2``      ``adapters.C2``; in window 3 of several ``adapters.C3_2``, and so on
segment      g^j          ``g1``      ``segments.g1``
coarse       F^j          ``F1``      ``coarse.F1``, or ``segments.g2`` where F^1 is g^2 itself
correction   K^j          ``K1``      ``coarse.K1``: what is added to segment 1's output
head         h            ``head``    ``head``
layer        f_n          ``f0``      not in a parareal network: a layer that multigrid solves for
===========  ===========  ==========  ==========================
"""

import dataclasses
from typing import Literal, get_args

from pararealize.coarse.spec import numbered

from .plan import Plan

__all__ = ["Part", "PartKind"]

PartKind = Literal["stem", "context", "adapter", "segment", "correction", "coarse", "layer", "head"]  # in forward order
_LETTERS: dict[PartKind, str] = {"adapter": "C", "segment": "g", "correction": "K", "coarse": "F", "layer": "f"}
_LABELS: dict[PartKind, str] = {
    "stem": "the stem C^1", "context": "the context", "adapter": "adapter C^{j}", "segment": "segment {j}",
    "coarse": "coarse block F^{j}", "correction": "correction K^{j}", "layer": "layer {j}", "head": "the head",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One call of a network's graph.

    Attributes:
        kind: which of the parts above.
        m: the window of an adapter, segment or coarse block, from 1; 0 where the network has one window alone.
        j: of an adapter, segment or coarse block, from 1; of a layer, from 0; otherwise 0.
        home: the device that calls it, from 1: that of its segment. F^j belongs to segment j + 1, the head to the last
            device.
        target: the module that is called, by its qualified name.
        reads: names of the values it is called with, without the activation of a segment, a coarse block and the head.
        gives: names of the values it gives, where others read them by name.
    """

    kind: PartKind
    m: int = 0
    j: int = 0
    home: int = 1
    target: str
    reads: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called: ``C2``, ``g1``, ``F1``, ``stem``."""
        return numbered(_LETTERS[self.kind], self.m, self.j) if self.kind in _LETTERS else self.kind

    @property
    def is_segment_itself(self) -> bool:
        """Whether this coarse block is g^{j+1} itself, and has no modules of its own."""
        return self.kind == "coarse" and self.target.startswith("segments.")

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Sorts parts as a forward pass meets them: stem, context, adapters, segments, coarse blocks, layers, head.

        Of windows, one comes after the other.
        """
        place = {"stem": 0, "context": 0, "head": 2}.get(self.kind, 1)
        return place, self.m, get_args(PartKind).index(self.kind), self.j

    @property
    def index(self) -> tuple[int, int]:
        """``(m, j)``."""
        return self.m, self.j

    def label(self, plan: Plan | None = None) -> str:
        """What people call it: ``segment 2 (layer1.1 to layer2.0)``, with its blocks where the plan is given."""
        if self.kind == "segment" and plan is not None:
            segment = next(row for row in plan.segments if row.index == self.index)
            return f"{segment.label} ({segment.first_block} to {segment.last_block})"
        return _LABELS[self.kind].format(j=f"{self.m},{self.j}" if self.m else self.j)
