"""Along one axis of a space: on which side a piece of a network reads. Plain data, which plans carry."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, TypeAlias

__all__ = ["Causality", "Sides", "causal_axes"]

_FURTHEST = 2**31  # positions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Causality:
    """What stands for a piece of a network may read, along one axis that the piece does not see both sides of.

    Output position ``o`` may read input position ``stride · o + offset``, and those on one side of it.

    Attributes:
        side: ``"past"``, positions before it too; ``"future"``, those after it; ``"own"``, no other one. ``"unclear"``:
            the piece is causal somewhere, or reads positions one by one, and its input has no axis that is this one.
        offset: 0, unless the piece reads its own position not at all (-1: what stands one before and earlier), or
            shortens the axis at its beginning.
        stride: input positions from one output position to the next; 1 where the axis grows, and one position serves
            several.
        frame: whether it reads all of ``stride`` positions, ``stride · o`` to ``stride · (o + 1) - 1``, so that their
            average is no more than it sees.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # of a plan's text, in which unknown keys are faults

    side: Literal["past", "future", "own", "unclear"]
    offset: int = 0
    stride: int = 1
    frame: bool = False

    def allows(self, behind: float, ahead: float) -> bool:
        """Whether a module may read from ``stride · o - behind`` to ``stride · o + ahead``."""
        last = self.offset + (self.stride - 1 if self.frame else 0)
        begins = -behind > self.offset - 1  # an axis that grows has positions between those of the input
        return {
            "past": ahead <= last,
            "future": begins,
            "own": ahead <= last and begins,
            "unclear": False,
        }[self.side]

    @property
    def fault(self) -> str:
        """What cannot be, in a value that comes out of a file; empty where it can."""
        faults = [f"{self.stride} input positions from one output position to the next"] if self.stride < 1 else []
        if not max(abs(self.offset), self.stride) <= _FURTHEST:
            faults.append(f"position {self.stride}·o + {self.offset} is further away than {_FURTHEST}")
        return " and ".join(faults)

    def __str__(self) -> str:
        words = {
            "past": "nothing later",
            "future": "nothing earlier",
            "own": "its own position alone",
            "unclear": "positions in a way that the network's own blocks alone keep to",
        }
        shift = f", {abs(self.offset)} {'before' if self.offset < 0 else 'behind'} its own" if self.offset else ""
        return words[self.side] + shift


Sides: TypeAlias = tuple[Causality | None, ...]  # one for each axis of an extent, None for both sides; empty: all both


def causal_axes(sides: Sides) -> str:
    """``"axis 1: nothing later"``, the axes counted without batch and channels, from 1; empty for both sides."""
    return ", ".join(f"axis {i}: {side}" for i, side in enumerate(sides, 1) if side is not None)
