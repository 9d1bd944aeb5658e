"""An action of one step -> the actions whose results it needs: equation (3) as a graph, forward and backward.

Names are those of ``timeline.py``: ``stem``, ``C3``, ``g3``, ``F2``, ``head``, and the transfers ``z2`` and ``x3``.
What segment 3 reads besides, ``c3``, comes from the inputs and waits for nothing.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from pydantic.dataclasses import dataclass

from pararealize.coarse.spec import STRICT

__all__ = ["Action", "Direction", "Key", "Kind", "waits_for"]

Kind = Literal["stem", "adapter", "fine", "coarse", "relax", "head", "transfer"]
Direction = Literal["forward", "backward"]

Key: TypeAlias = tuple[str, Literal["forward", "backward"]]

_NAME = re.compile(r"(stem|head|C|c|g|F|z|x)(\d*)")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Action:
    """One thing that one rank does.

    Attributes:
        name: ``"g3"`` and so on, as above; with ``direction``, unique within a timeline.
        kind: what sort of thing it is; a transfer does not occupy the rank.
        direction: of the pass that it belongs to.
        j: the segment that it belongs to, from 1; of a transfer, the one that sends.
        rank: the device, from 0; of a transfer, the one that sends.
        to: of a transfer, the rank that receives; otherwise ``None``.
        start: seconds since the step began.
        end: likewise.
        after: positions in the timeline of the actions whose results it needs.
    """

    name: str
    kind: Kind
    direction: Direction
    j: int
    rank: int
    to: int | None = None
    start: float
    end: float
    after: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end - self.start

    def __str__(self) -> str:
        """``g3`` forward, ``g3'`` backward."""
        return self.name + ("'" if self.direction == "backward" else "")


def waits_for(key: Key, n: int, source: str = "input") -> list[Key]:
    """What an action of a network of n segments needs; what its device did before is another matter.

    Backward, with ``∇z_N`` from the head,

    - ``F^j`` turns ``∇z_{j+1}`` into ``∇z_j``, which is sent to segment j;
    - ``g^j`` needs ``∇y_j = ∇z_j``;
    - ``C^j`` needs both parts of ``∇x_j``, from ``g^j`` and, negative, from ``F^{j-1}``;
    - the stem needs what ``g^1`` gives and, where adapters read its output, what they give.

    Args:
        key: name and direction.
        n: the number of segments.
        source: what adapters read, ``"input"`` or ``"stem"``.

    Example:
        >>> waits_for(("F2", "forward"), 4), waits_for(("F2", "backward"), 4)
        ([('g3', 'forward'), ('z2', 'forward')], [('z3', 'backward')])
    """
    matched = _NAME.fullmatch(key[0])
    assert matched is not None, key
    what, j = matched[1], int(matched[2] or 0)
    names = _forward(what, j, n, source) if key[1] == "forward" else _backward(what, j, n, source)
    needs: list[Key] = [(name, key[1]) for name in names]
    return [("head", "forward")] if key == ("head", "backward") else needs


def _forward(what: str, j: int, n: int, source: str) -> list[str]:
    match what:
        case "x":
            return ["stem"]
        case "C":
            return [f"x{j}"] if source == "stem" else []
        case "g":
            return [f"C{j}"] if j > 1 else ["stem"]
        case "z":
            return [f"F{j - 1}"] if j > 1 else ["g1"]
        case "F":
            return [f"g{j + 1}", f"z{j}"]
        case "head":
            return [f"F{n - 1}"] if n > 1 else ["g1"]
    return []  # the stem


def _backward(what: str, j: int, n: int, source: str) -> list[str]:
    match what:
        case "x":
            return [f"C{j}"]
        case "C":
            return [f"g{j}", f"F{j - 1}"]
        case "g":
            return [f"z{j}"] if j < n else ["head"]
        case "z":
            return [f"F{j}"]
        case "F":
            return [f"z{j + 1}"] if j + 1 < n else ["head"]
        case "stem":
            return ["g1", *(f"x{i}" for i in range(2, n + 1) if source == "stem")]
    return []
