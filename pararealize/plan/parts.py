"""A part of a network: which it is, what it is called, what it reads and what it gives. Plain data, no modules.

===========  ===========  ==========  ==========================
kind         in formulas  name        called in the graph as
===========  ===========  ==========  ==========================
stem         C^1          ``stem``    ``stem``
context                   ``context`` ``context``
adapter      C^j, j > 1   ``C2``      ``adapters.C2``
segment      g^j          ``g1``      ``segments.g1``
coarse       F^j          ``F1``      ``coarse.F1``, or ``segments.g2`` where F^1 is g^2 itself
head         h            ``head``    ``head``
layer        f_n          ``f0``      not in a parareal network: a layer that multigrid solves for
===========  ===========  ==========  ==========================
"""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["Part", "PartKind"]

PartKind = Literal["stem", "context", "adapter", "segment", "coarse", "head", "layer"]
_LETTERS: dict[PartKind, str] = {"adapter": "C", "segment": "g", "coarse": "F", "layer": "f"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One call of a network's graph.

    Attributes:
        kind: which of the parts above.
        j: of an adapter, segment or coarse block, from 1; of a layer, from 0; otherwise 0.
        target: the module that is called, by its qualified name.
        reads: names of the values it is called with, without the activation of a segment, a coarse block and the head.
        gives: names of the values it gives, where others read them by name.
    """

    kind: PartKind
    j: int = 0
    target: str
    reads: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called: ``C2``, ``g1``, ``F1``, ``stem``."""
        return f"{_LETTERS[self.kind]}{self.j}" if self.kind in _LETTERS else self.kind

    @property
    def is_segment_itself(self) -> bool:
        """Whether this coarse block is g^{j+1} itself, and has no modules of its own."""
        return self.kind == "coarse" and self.target.startswith("segments.")
