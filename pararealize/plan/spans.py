"""Rows of a recorded step -> a Span for every action, and the actions that each waited for.

A rank records what it computes, and its own end of every message; here both ends become one transfer. What an action
waited for follows from the equation, or, within a sum over ranks, from the order in which the sum is done.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import cast

from pararealize.errors import PlanError

from .actions import ActionKey, Direction, Operation, Span, waits_for
from .recording import COMPUTED, MESSAGE_ENDS

__all__ = ["needs_of", "spans_of"]


def spans_of(rows: Iterable[tuple[int, int, str, str, float, float]], n: int) -> dict[ActionKey, Span]:
    """One span an action; the two ends of a message joined.

    Raises:
        PlanError: a row is of no known form, or there are none.
    """
    spans: dict[ActionKey, Span] = {}
    messages: dict[ActionKey, dict[str, Span]] = {}
    additions: dict[int, list[Span]] = {}
    for row in rows:
        action, direction, span = _read(row, n)
        if action == "sum":
            additions.setdefault(span.j, []).append(span)
        elif action in MESSAGE_ENDS:
            ends, end = messages.setdefault(_message(action, span.j, direction), {}), MESSAGE_ENDS[action]
            # The stem's output and other shared values are sent under the same words as z_j: before it forward, and
            # their gradients after its gradient. So the last message forward and the first backward are those of z_j.
            if end not in ends or (span.start > ends[end].start) == (direction == "forward"):
                ends[end] = span
        else:
            key = _computed(action, span.j, direction)
            spans[key] = _joined(spans[key], span) if key in spans else span
    for j, several in additions.items():
        in_time = sorted(several, key=lambda span: span.start)
        spans |= {ActionKey("sum", "forward", j, index): span for index, span in enumerate(in_time, 1)}
    for key, ends in messages.items():
        if len(ends) == 2:
            send, receive = ends["send"], ends["receive"]
            # The end is by the receiver's clock, as the actions are that need it. The sender's may be ahead of that by
            # as much as the barrier at the beginning of the recording took.
            spans[key] = send._replace(start=min(send.start, receive.end), end=receive.end, to=receive.rank)
    if not spans:
        raise PlanError("there are no records; record one step at least")
    return spans


def _read(row: tuple[int, int, str, str, float, float], n: int) -> tuple[str, Direction, Span]:
    rank, j, action, direction, start, end = row
    words = (*COMPUTED, *MESSAGE_ENDS)
    if action not in words or direction not in ("forward", "backward") or not 1 <= j <= n or rank < 0 or end < start:
        raise PlanError(
            f"the record {row!r} cannot be read for n = {n}; a record is (rank, segment from 1 to n, "
            f"{', '.join(map(repr, words))}, 'forward' or 'backward', start, end)"
        )
    return action, "forward" if direction == "forward" else "backward", Span(rank, j, start, end)


def _computed(action: str, j: int, direction: Direction) -> ActionKey:
    """What a rank computed for segment j; a rank that computes the stem once more does so for its adapter to read."""
    if action == "stem" and j > 1:
        return ActionKey("adapter", direction, j)
    number = {"stem": 0, "head": 0, "coarse": j - 1}.get(action, j)
    return ActionKey(cast(Operation, action), direction, number)


def _message(action: str, j: int, direction: Direction) -> ActionKey:
    """Which message a rank had part in, while at segment j.

    One of a sum goes by the segment behind which the sum is sent, and so does its gradient, which is that of z_j.
    """
    if action in ("send sum", "receive sum"):
        return ActionKey("send sum" if direction == "forward" else "send z", direction, j)
    is_before_interface = (action == "send") == (direction == "forward")
    return ActionKey("send z", direction, j if is_before_interface else j - 1)


def _joined(earlier: Span, later: Span) -> Span:
    return later._replace(start=min(earlier.start, later.start), end=max(earlier.end, later.end))


# What an action waited for --------------------------------------------------------------------------------------------


def needs_of(key: ActionKey, spans: Mapping[ActionKey, Span], n: int, source: str) -> set[ActionKey]:
    """The actions that an action waited for, among those that were recorded.

    Args:
        key: which action.
        spans: of all actions, as :func:`spans_of` gives them.
        n: the number of segments.
        source: what adapters read, ``"input"`` or ``"stem"``.
    """
    if key.direction == "backward":
        if key.operation == "send z" and _is_of_sum(key, spans):
            return _arrivals(spans[key].rank, spans, n, source)
        return _by_equation(key, spans, n, source)
    rank = spans[key].rank
    differences = _computed_by(rank, "difference", spans)
    chain = [*differences, *_computed_by(rank, "sum", spans)]
    if key.operation in ("difference", "sum", "send sum"):
        return _within_sum(key, chain, spans) if differences else set()
    if key.operation == "coarse" and differences and key.j == differences[-1].j - 1:
        # A sum stands for this F^j and those before it; on the rank where it ends, z of before the sum is added last.
        return {chain[-1], *_received_by(rank, "send z", spans)}
    return _by_equation(key, spans, n, source)


def _by_equation(key: ActionKey, spans: Mapping[ActionKey, Span], n: int, source: str) -> set[ActionKey]:
    """What the equation names; in place of what was not recorded, what that would have waited for."""
    needs: set[ActionKey] = set()
    for other in waits_for(key, [n], source):
        needs |= {other} if other in spans else _by_equation(other, spans, n, source)
    return needs


def _computed_by(rank: int, operation: Operation, spans: Mapping[ActionKey, Span]) -> list[ActionKey]:
    """What a rank computed forward of one sort, in the order of the formulas."""
    keys = [key for key in spans if (key.operation, key.direction, spans[key].rank) == (operation, "forward", rank)]
    return sorted(keys, key=lambda key: (key.j, key.index))


def _received_by(rank: int, operation: Operation, spans: Mapping[ActionKey, Span]) -> set[ActionKey]:
    """The messages of one sort that a rank received forward."""
    return {key for key in spans if (key.operation, key.direction, spans[key].to) == (operation, "forward", rank)}


def _within_sum(key: ActionKey, chain: list[ActionKey], spans: Mapping[ActionKey, Span]) -> set[ActionKey]:
    """What a difference, an addition or a message of a sum waited for on its way forward.

    ``chain`` is the rank's part of the sum in order, its differences and then its additions.
    """
    if key.operation == "send sum":
        return {chain[-1]}
    if key.operation == "sum":
        messages = _received_by(spans[key].rank, "send sum", spans)
        in_time = {other for other in messages if spans[other].end <= spans[key].start}
        return in_time | {chain[chain.index(key) - 1]}
    fine = ActionKey("fine", "forward", key.j)
    before = ActionKey("difference", "forward", key.j - 1)
    return {other for other in (before, fine) if other in spans and spans[other].rank == spans[key].rank}


def _is_of_sum(key: ActionKey, spans: Mapping[ActionKey, Span]) -> bool:
    """Whether a gradient goes to a rank of a sum, or to the one before it, and not only to the rank before."""
    rank, to = spans[key].rank, spans[key].to
    return to != rank - 1 or ActionKey("send sum", "forward", key.j) in spans


def _arrivals(rank: int, spans: Mapping[ActionKey, Span], n: int, source: str) -> set[ActionKey]:
    """What brings the gradient of a sum to a rank that passes it on: a message, or its own later coarse blocks."""
    if coarse := _computed_by(rank, "coarse", spans):
        return _by_equation(dataclasses.replace(coarse[0], direction="backward"), spans, n, source)
    return {key for key, span in spans.items() if key.direction == "backward" and span.to == rank}
