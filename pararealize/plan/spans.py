"""Rows of a recorded step -> a Span for every action, and the actions that each waited for.

A rank records what it computes, and its own end of every message; here both ends become one transfer. What an action
waited for follows from the equation, or, within a sum over ranks, from the order in which the sum is done.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast

from pararealize.errors import PlanError

from .actions import ActionKey, Direction, Operation, Span, waits_for
from .recording import COMPUTED, MESSAGE_ENDS

__all__ = ["Row", "needs_of", "spans_of"]

Row: TypeAlias = tuple[int, int, str, str, float, float] | tuple[int, int, str, str, float, float, int]


def spans_of(rows: Iterable[Row], n: int) -> dict[ActionKey, Span]:
    """One span an action; the two ends of a message joined.

    Raises:
        PlanError: a row is of no known form, or there are none.
    """
    spans: dict[ActionKey, Span] = {}
    messages: dict[ActionKey, dict[str, Span]] = {}
    additions: dict[tuple[int, int], list[Span]] = {}
    reductions: dict[tuple[int, Direction], dict[int, Span]] = {}
    read = [_read(row, n) for row in rows]
    several = any(span.m for _, _, span in read)
    for action, direction, span in read:
        if action == "sum":
            additions.setdefault((span.m, span.j), []).append(span)
        elif action == "all-reduce":
            reductions.setdefault((span.m, direction), {})[span.rank] = span
        elif action in MESSAGE_ENDS:
            if several and not span.m:
                continue  # the stem's output and other shared values, which belong to no window
            ends, end = messages.setdefault(_message(action, span, direction), {}), MESSAGE_ENDS[action]
            # In a network of one window they are sent under the same words as z_j: before it forward, and their
            # gradients after its gradient. So the last message forward and the first backward are those of z_j.
            if end not in ends or (span.start > ends[end].start) == (direction == "forward"):
                ends[end] = span
        else:
            key = _computed(action, span, direction)
            spans[key] = _joined(spans[key], span) if key in spans else span
    for (m, j), of_one in additions.items():
        in_time = sorted(of_one, key=lambda span: span.start)
        spans |= {ActionKey("sum", "forward", j, index, m=m): span for index, span in enumerate(in_time, 1)}
    for key, ends in messages.items():
        if len(ends) == 2:
            spans[key] = _sent(ends["send"], ends["receive"])
    for (m, direction), of_ranks in reductions.items():  # from each rank to the next one in a ring
        ring = sorted(of_ranks)
        for rank, to in zip(ring, [*ring[1:], ring[0]], strict=True):
            key = ActionKey("all-reduce", direction, of_ranks[rank].j, m=m)
            spans[key] = _sent(of_ranks[rank], of_ranks[to])
    if not spans:
        raise PlanError("there are no records; record one step at least")
    return spans


def _read(row: Row, n: int) -> tuple[str, Direction, Span]:
    rank, j, action, direction, start, end, *windows = row
    m = windows[0] if windows else 0
    words = (*COMPUTED, *MESSAGE_ENDS, "all-reduce")
    known = action in words and direction in ("forward", "backward") and 1 <= j <= n and m >= 0 and rank >= 0
    if not known or end < start:
        raise PlanError(
            f"the record {row!r} cannot be read for n = {n}; a record is (rank, segment from 1 to n, "
            f"{', '.join(map(repr, words))}, 'forward' or 'backward', start, end) and, in a network of several "
            "windows, the window from 1"
        )
    return action, "forward" if direction == "forward" else "backward", Span(rank, j, start, end, m=m)


def _computed(action: str, span: Span, direction: Direction) -> ActionKey:
    """What a rank computed for segment j; a rank that computes the stem once more does so for its adapter to read."""
    if action == "stem" and span.j > 1:
        return ActionKey("adapter", direction, span.j, m=span.m)
    if action in ("stem", "head"):
        return ActionKey(cast(Operation, action), direction)
    return ActionKey(cast(Operation, action), direction, span.j - (action == "coarse"), m=span.m)


def _message(action: str, span: Span, direction: Direction) -> ActionKey:
    """Which message a rank had part in, while at segment j.

    One of a sum goes by the segment behind which the sum is sent, and so does its gradient, which is that of z_j. What
    a window begins with goes by the segment that reads it.
    """
    if action in ("send end", "receive end"):
        return ActionKey("send x", direction, span.j, m=span.m)
    if action in ("send sum", "receive sum"):
        return ActionKey("send sum" if direction == "forward" else "send z", direction, span.j, m=span.m)
    is_before_interface = (action == "send") == (direction == "forward")
    return ActionKey("send z", direction, span.j if is_before_interface else span.j - 1, m=span.m)


def _sent(send: Span, receive: Span) -> Span:
    """A message, from the start of its one end to the end of the other."""
    # The end is by the receiver's clock, as the actions are that need it. The sender's may be ahead of that by as much
    # as the barrier at the beginning of the recording took.
    return send._replace(start=min(send.start, receive.end), end=receive.end, to=receive.rank)


def _joined(earlier: Span, later: Span) -> Span:
    return later._replace(start=min(earlier.start, later.start), end=max(earlier.end, later.end))


# What an action waited for --------------------------------------------------------------------------------------------


def needs_of(key: ActionKey, spans: Mapping[ActionKey, Span], source: str) -> set[ActionKey]:
    """The actions that an action waited for, among those that were recorded.

    Args:
        key: which action.
        spans: of all actions, as :func:`spans_of` gives them.
        source: what adapters of the first window read, ``"input"`` or ``"stem"``.
    """
    return _Recorded(spans, source).needs(key)


class _Recorded:
    """The actions of a recorded step, and what each of them waited for."""

    def __init__(self, spans: Mapping[ActionKey, Span], source: str) -> None:
        self.spans, self.source = spans, source
        lengths: dict[int, int] = {}
        for key in spans:
            if key.operation in ("fine", "adapter", "coarse"):
                lengths[key.m] = max(lengths.get(key.m, 1), key.j + (key.operation == "coarse"))
        self.lengths = [lengths[m] for m in sorted(lengths)] or [1]

    def needs(self, key: ActionKey) -> set[ActionKey]:
        """The actions that an action waited for."""
        if key.operation == "all-reduce":
            return self._parts(key)
        if (result := self._reduced_before(key)) is not None:
            return result
        if key.direction == "backward":
            if key.operation == "send z" and self._is_of_sum(key):
                return self._arrivals(key)
            return self._by_equation(key)
        rank = self.spans[key].rank
        differences = self._computed_by(rank, "difference", key.m)
        chain = [*differences, *self._computed_by(rank, "sum", key.m)]
        if key.operation in ("difference", "sum", "send sum"):
            return self._within_sum(key, chain) if differences else set()
        if key.operation == "coarse" and differences and key.j == differences[-1].j - 1:
            # A sum stands for this F^j and those before it; where it ends, z of before the sum is added last.
            return {chain[-1], *self._received_by(rank, "send z", key.m)}
        return self._by_equation(key)

    def _by_equation(self, key: ActionKey) -> set[ActionKey]:
        """What the equation names; in place of what was not recorded, what that would have waited for."""
        needs: set[ActionKey] = set()
        for other in waits_for(key, self.lengths, self.source):
            needs |= {other} if other in self.spans else self._by_equation(other)
        return needs

    def _reduced_before(self, key: ActionKey) -> set[ActionKey] | None:
        """Where an all-reduce gave what an action begins with: that; backward, for adapters, their own segment."""
        if key.operation not in ("fine", "adapter"):
            return None
        if key.direction == "backward":
            arrived = self._received_by(self.spans[key].rank, "all-reduce", key.m, "backward")
            fine = ActionKey("fine", "backward", key.j, m=key.m)
            return {fine} if arrived and key.operation == "adapter" and fine in self.spans else arrived or None
        if key.operation == "fine" and key.j > 1:
            return None
        return self._received_by(self.spans[key].rank, "all-reduce", key.m - 1) or None if key.m > 1 else None

    def _parts(self, key: ActionKey) -> set[ActionKey]:
        """What an all-reduce adds up: y_1 or differences of all ranks; backward, what the next window gives."""
        if key.direction == "forward":
            parts = {self.spans[other].rank: other for other in self._of("fine", "forward", key.m) if other.j == 1}
            for other in self._of("difference", "forward", key.m):
                parts[self.spans[other].rank] = other
            return set(parts.values())
        last = {*self._of("adapter", "backward", key.m + 1)}
        return last | {
            other
            for other in self._of("fine", "backward", key.m + 1)
            if ActionKey("adapter", "backward", other.j, m=other.m) not in last
        }

    def _of(self, operation: Operation, direction: Direction, m: int) -> list[ActionKey]:
        """The recorded actions of one sort in one window, in the order of the formulas."""
        keys = [key for key in self.spans if (key.operation, key.direction, key.m) == (operation, direction, m)]
        return sorted(keys, key=lambda key: (key.j, key.index))

    def _computed_by(self, rank: int, operation: Operation, m: int) -> list[ActionKey]:
        """What a rank computed forward of one sort, in the order of the formulas."""
        return [key for key in self._of(operation, "forward", m) if self.spans[key].rank == rank]

    def _received_by(self, rank: int, operation: Operation, m: int, direction: Direction = "forward") -> set[ActionKey]:
        """The messages of one sort that a rank received in a window."""
        return {key for key in self._of(operation, direction, m) if self.spans[key].to == rank}

    def _within_sum(self, key: ActionKey, chain: list[ActionKey]) -> set[ActionKey]:
        """What a difference, an addition or a message of a sum waited for on its way forward.

        ``chain`` is the rank's part of the sum in order, its differences and then its additions.
        """
        if key.operation == "send sum":
            return {chain[-1]}
        if key.operation == "sum":
            messages = self._received_by(self.spans[key].rank, "send sum", key.m)
            in_time = {other for other in messages if self.spans[other].end <= self.spans[key].start}
            return in_time | {chain[chain.index(key) - 1]}
        fine = ActionKey("fine", "forward", key.j, m=key.m)
        before = ActionKey("difference", "forward", key.j - 1, m=key.m)
        first = ActionKey("fine", "forward", 1, m=key.m)  # whose y_1 an all-reduce adds the difference of segment 2 to
        sums_all = key.j == 2 and bool(self._of("all-reduce", "forward", key.m))
        wanted = (before, fine, first) if sums_all else (before, fine)
        rank = self.spans[key].rank
        return {other for other in wanted if other in self.spans and self.spans[other].rank == rank}

    def _is_of_sum(self, key: ActionKey) -> bool:
        """Whether a gradient goes to a rank of a sum, or to the one before it, and not only to the rank before."""
        rank, to = self.spans[key].rank, self.spans[key].to
        return to != rank - 1 or ActionKey("send sum", "forward", key.j, m=key.m) in self.spans

    def _arrivals(self, key: ActionKey) -> set[ActionKey]:
        """What brings the gradient of a sum to a rank that passes it on: a message, or its own later coarse blocks."""
        rank = self.spans[key].rank
        if coarse := self._computed_by(rank, "coarse", key.m):
            return self._by_equation(dataclasses.replace(coarse[0], direction="backward"))
        of_window = (other for other in self.spans if other.direction == "backward" and other.m == key.m)
        return {other for other in of_window if self.spans[other].to == rank}
