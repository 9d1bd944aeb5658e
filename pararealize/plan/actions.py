"""Actions of one step: what each is called, what it needs, and when which rank does it. Plain data.

What the library computes with is an :class:`ActionKey`; its text form is what is printed and stored.

===============  ==========  ==========  =======================================================================
operation        text        kind        what it is
===============  ==========  ==========  =======================================================================
``stem``         ``stem``    stem        C^1
``context``      ``c3``      adapter     what segment 3 reads besides (masks, tables), from the inputs alone
``adapter``      ``C3``      adapter     C^3
``fine``         ``g3``      fine        g^3; of layers, the evaluation of layer 3 that counts
``coarse``       ``F2``      coarse      F^2, on segment 3's rank; of layers, ``F3.1``, a coarse step
``difference``   ``d3``      coarse      y_3 - x_3, where F^2 is the identity and summed over ranks
``sum``          ``s2.1``    coarse      the first addition on the rank whose last segment is 2
``relax``        ``f3.1``    relax       of layers, an evaluation of layer 3 in relaxation
``head``         ``head``    head        h
``send x``       ``x3``      transfer    the stem's output for C^3, and its gradient back
``send z``       ``z2``      transfer    z_2 from segment 2 to segment 3, and its gradient back
``send sum``     ``t3``      transfer    a difference, or a sum of them, of the rank whose last segment is 3
``all-reduce``   ``a2_3``    transfer    of window 2, the part in a sum over all ranks of the one whose last segment
                                         is 3: forward of w_2, backward of its gradient
``send u``       ``u2.1``    transfer    of layers, a value from interval 2
``send v``       ``v2.1``    transfer    of layers, a gradient from interval 2
===============  ==========  ==========  =======================================================================

In a network of several windows, parts and values have two numbers: ``g2_3``, segment 3 of window 2. There, ``x2_3`` is
what window 1 gives, for C^{2,3}.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field
from pydantic.dataclasses import dataclass

from pararealize.argument_types import typed_fields
from pararealize.coarse.spec import STRICT, Cost, Count, Text, numbered
from pararealize.errors import PlanError

__all__ = [
    "Action",
    "ActionKey",
    "ActionKind",
    "Direction",
    "Operation",
    "Span",
    "formula",
    "in_order",
    "kind_of",
    "waits_for",
]

ActionKind = Literal["stem", "adapter", "fine", "coarse", "relax", "head", "transfer"]
Direction = Literal["forward", "backward"]
Operation = Literal[
    "stem", "context", "adapter", "fine", "coarse", "difference", "sum", "relax", "head",
    "send x", "send z", "send sum", "all-reduce", "send u", "send v",
]  # fmt: skip

_TEXTS: dict[Operation, tuple[str, ActionKind]] = {
    "stem": ("stem", "stem"),
    "context": ("c", "adapter"),
    "adapter": ("C", "adapter"),
    "fine": ("g", "fine"),
    "coarse": ("F", "coarse"),
    "difference": ("d", "coarse"),
    "sum": ("s", "coarse"),
    "relax": ("f", "relax"),
    "head": ("head", "head"),
    "send x": ("x", "transfer"),
    "send z": ("z", "transfer"),
    "send sum": ("t", "transfer"),
    "all-reduce": ("a", "transfer"),
    "send u": ("u", "transfer"),
    "send v": ("v", "transfer"),
}


_KINDS: dict[str, ActionKind] = dict(_TEXTS.values())


@dataclasses.dataclass(frozen=True, slots=True)
class ActionKey:
    """Which action of a step; unique within one timeline.

    Attributes:
        operation: what is computed or sent, as in the table above.
        direction: of the pass that it belongs to.
        j: the number in its formula, of a segment or a coarse block from 1, of a layer from 0; of stem and head, 0.
        index: from 1, where one j has several such actions; otherwise 0.
        m: the window, from 1; 0 where the network has one window alone.

    Example:
        >>> print(ActionKey("coarse", "backward", 2), ActionKey("sum", "forward", 2, 1), ActionKey("stem", "forward"))
        F2' s2.1 stem
    """

    operation: Operation
    direction: Direction
    j: int = 0
    index: int = 0
    m: int = 0

    @property
    def kind(self) -> ActionKind:
        """What sort of thing it is."""
        return _TEXTS[self.operation][1]

    @property
    def name(self) -> str:
        """The text form without the direction: ``F2``, ``s2.1``, ``stem``."""
        text = _TEXTS[self.operation][0]
        if self.operation in ("stem", "head"):
            return text
        name = numbered(text, self.m, self.j)
        return f"{name}.{self.index}" if self.index else name

    def __str__(self) -> str:
        return self.name + ("'" if self.direction == "backward" else "")


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Action:
    """One thing that one rank does, as it is stored.

    Attributes:
        name: ``"g3"`` and so on, as above; with ``direction``, unique within a timeline.
        kind: what sort of thing it is; a transfer does not occupy the rank.
        direction: of the pass that it belongs to.
        j: the segment that it belongs to, from 1; of a transfer, the one that sends.
        m: its window, from 1; 0 where the network has one window alone.
        rank: the device, from 0; of a transfer, the one that sends.
        to: of a transfer, the rank that receives; otherwise ``None``.
        start: seconds since the step began.
        end: likewise.
        after: positions in the timeline of the actions whose results it needs.
    """

    name: Text
    kind: ActionKind
    direction: Direction
    j: Count
    rank: Count
    to: Count | None = None
    start: Cost
    end: Annotated[float, Field(le=1e60)]
    after: tuple[Count, ...] = ()
    m: Count = 0

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end - self.start

    def __str__(self) -> str:
        """``g3`` forward, ``g3'`` backward."""
        return self.name + ("'" if self.direction == "backward" else "")


class Span(NamedTuple):
    """Where and when an action takes place: rank, segment, receiver and window as in :class:`Action`, in seconds."""

    rank: int
    j: int
    start: float
    end: float
    to: int | None = None
    m: int = 0


def in_order(spans: Mapping[ActionKey, Span], needs: Mapping[ActionKey, Iterable[ActionKey]]) -> tuple[Action, ...]:
    """Actions in order of start, then of end, then as given, each with the positions of those that it needs.

    Args:
        spans: where and when each action takes place.
        needs: for each of them, actions of ``spans`` whose results it needs.
    """
    keys = sorted(spans, key=lambda key: (spans[key].start, spans[key].end))
    position = {key: i for i, key in enumerate(keys)}
    after = {key: tuple(sorted({position[other] for other in needs[key]})) for key in keys}
    return tuple(
        Action(name=key.name, kind=key.kind, direction=key.direction, after=after[key], **spans[key]._asdict())
        for key in keys
    )


def kind_of(name: str) -> ActionKind | None:
    """What sort of thing an action of this name is; ``None`` where none has such a name.

    Example:
        >>> kind_of("F2"), kind_of("s2.1"), kind_of("g"), kind_of("stem2")
        ('coarse', 'coarse', None, None)
    """
    word = re.fullmatch(r"(stem|head)|([A-Za-z])[0-9]{1,9}(?:_[0-9]{1,9})?(?:\.[0-9]{1,9})?", name)
    return None if word is None else _KINDS.get(word[1] or word[2])


def formula(name: str) -> str:
    """The text form of an action as mathematics: ``g3`` as ``$g^{3}$``, ``g2_3`` as ``$g^{2,3}$``; words stay."""
    return re.sub(r"^([A-Za-z])(?:([0-9]+)_)?([0-9][0-9.]*)$", _as_mathematics, name)


def _as_mathematics(match: re.Match[str]) -> str:
    letter, window, number = match.groups()
    return f"${letter}^{{{window},{number}}}$" if window else f"${letter}^{{{number}}}$"


def waits_for(key: ActionKey, lengths: Sequence[int], source: str = "input") -> list[ActionKey]:
    """What an action of a parareal network needs: equation (3) as a graph, forward and backward.

    What its device did before is another matter. Backward, with ``∇z_N`` from the head, or of the window's output,

    - ``F^j`` turns ``∇z_{j+1}`` into ``∇z_j``, which is sent to segment j;
    - ``g^j`` needs ``∇y_j = ∇z_j``;
    - ``C^j`` needs both parts of ``∇x_j``, from ``g^j`` and, negative, from ``F^{j-1}``;
    - the stem needs what ``g^1`` gives and, where adapters read its output, what they give; so does the end of a window
      that another one follows.

    Args:
        key: which action; what a sum over ranks does is not in the equation, and needs nothing here.
        lengths: the number of segments of each window.
        source: what adapters of the first window read, ``"input"`` or ``"stem"``.

    Example:
        >>> print(*waits_for(ActionKey("coarse", "forward", 2), [4]))
        g3 z2
        >>> print(*waits_for(ActionKey("coarse", "backward", 2), [4]))
        z3'
        >>> print(*waits_for(ActionKey("adapter", "forward", 2, m=2), [4, 4]))
        x2_2
        >>> print(*waits_for(ActionKey("head", "forward"), [4, 4]))
        F2_3
    """
    direction, several = key.direction, len(lengths) > 1
    if key == ActionKey("head", "backward"):
        return [ActionKey("head", "forward")]
    if key.operation == "head":
        return _end(len(lengths) - 1, lengths)
    place = max(key.m - 1, 0)  # of the window among all
    if direction == "forward":
        if key.operation == "send x" and place > 0:
            return _end(place - 1, lengths)
        from_before = place > 0 or source == "stem"
        needs = _forward(key.j, from_before, first=place == 0).get(key.operation, [])
        return [ActionKey(operation, direction, j, m=0 if operation == "stem" else key.m) for operation, j in needs]
    if key.operation == "stem":
        received: list[tuple[Operation, int]] = [("send x", i) for i in range(2, lengths[0] + 1) if source == "stem"]
        return [ActionKey(operation, direction, j, m=int(several)) for operation, j in [("fine", 1), *received]]
    if (key.operation, key.j) in (("fine", lengths[place]), ("coarse", lengths[place] - 1)):
        if place + 1 == len(lengths):
            return [ActionKey("head", direction)]
        return [ActionKey("send x", direction, j, m=place + 2) for j in range(1, lengths[place + 1] + 1)]
    return [ActionKey(operation, direction, j, m=key.m) for operation, j in _backward(key.j).get(key.operation, [])]


def _end(place: int, lengths: Sequence[int]) -> list[ActionKey]:
    """What gives the output of a window."""
    m = place + 1 if len(lengths) > 1 else 0
    last = lengths[place]
    return [ActionKey("coarse", "forward", last - 1, m=m) if last > 1 else ActionKey("fine", "forward", 1, m=m)]


_Needs: TypeAlias = dict[Operation, list[tuple[Operation, int]]]  # of each operation, by operation and j


def _forward(j: int, from_before: bool, *, first: bool) -> _Needs:
    return {
        "send x": [("stem", 0)],
        "adapter": [("send x", j)] if from_before else [],
        "fine": [("adapter", j)] if j > 1 else [("stem", 0)] if first else [("send x", 1)],
        "send z": [("coarse", j - 1)] if j > 1 else [("fine", 1)],
        "coarse": [("fine", j + 1), ("send z", j)],
    }


def _backward(j: int) -> _Needs:
    return {
        "send x": [("adapter", j)] if j > 1 else [("fine", 1)],
        "adapter": [("fine", j), ("coarse", j - 1)],
        "fine": [("send z", j)],
        "send z": [("coarse", j)],
        "coarse": [("send z", j + 1)],
    }
