"""Records of a real step, one row a rank and action -> a span for every action, and what it waited for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from pararealize.errors import PlanError

from .actions import Direction, Key, waits_for

__all__ = ["Record", "Span", "needs_of", "spans_of"]

Record: TypeAlias = tuple[int, int, str, str, float, float]  # rank, j, action, direction, start, end
Span: TypeAlias = tuple[int, int, float, float, int | None]  # rank, j, start, end, to

_NAMES = {
    "stem": "stem",
    "context": "c{j}",
    "adapter": "C{j}",
    "fine": "g{j}",
    "coarse": "F{before}",
    "head": "head",
    "difference": "d{j}",
}
_ENDS = ("send", "receive", "send sum", "receive sum")


def spans_of(records: Iterable[Record], n: int) -> dict[Key, Span]:
    """One span an action; sends and receives of one message joined.

    Raises:
        PlanError: a record is of no known form, or there are none.
    """
    found: dict[Key, Span] = {}
    ends: dict[Key, dict[str, Span]] = {}
    sums: dict[int, list[Span]] = {}
    for record in records:
        rank, j, action, direction, start, end = record
        known = action in (*_NAMES, "sum", *_ENDS)
        if not known or direction not in ("forward", "backward") or not 1 <= j <= n or rank < 0 or end < start:
            raise PlanError(
                f"the record {record!r} cannot be read for n = {n}; a record is (rank, segment from 1 to n, "
                f"{', '.join(map(repr, (*_NAMES, 'sum', *_ENDS)))}, 'forward' or 'backward', start, end)"
            )
        way: Direction = "forward" if direction == "forward" else "backward"
        span: Span = (rank, j, start, end, None)
        if action == "sum":
            sums.setdefault(j, []).append(span)
        elif action in _NAMES:
            action = "adapter" if action == "stem" and j > 1 else action  # done once more, for C^j to read
            key: Key = (_NAMES[action].format(j=j, before=j - 1), way)
            found[key] = _joined(found.get(key), span)
        else:
            side = action.partition(" ")[0]
            sides = ends.setdefault(_message(action, j, way), {})
            known_so_far = sides.get(side)
            if known_so_far is None or (start > known_so_far[2]) == (way == "forward"):
                sides[side] = span
    for j, spans in sums.items():
        ordered = sorted(spans, key=lambda span: span[2])
        found.update({(f"s{j}.{r}", "forward"): span for r, span in enumerate(ordered, 1)})
    for key, sides in ends.items():
        send, receive = sides.get("send"), sides.get("receive")
        if send is not None and receive is not None:
            found[key] = (send[0], send[1], send[2], max(receive[3], send[2]), receive[0])
    if not found:
        raise PlanError("there are no records; record one step at least")
    return found


def _message(action: str, j: int, way: Direction) -> Key:
    """What a message is called; that of a sum by the segment behind which it is sent, or its gradient is needed."""
    if action.endswith("sum"):
        return (f"t{j}" if way == "forward" else f"z{j}"), way
    return f"z{j if (action == 'send') == (way == 'forward') else j - 1}", way


def _joined(one: Span | None, other: Span) -> Span:
    if one is None:
        return other
    return other[0], other[1], min(one[2], other[2]), max(one[3], other[3]), other[4]


def needs_of(key: Key, spans: dict[Key, Span], n: int, source: str) -> set[Key]:
    """What an action waits for among those that are there."""
    name, way = key
    rank, j, start, _, to = spans[key]
    own = {other: span for other, span in spans.items() if span[0] == rank and other[1] == "forward"}
    differences = [other for other in own if other[0][0] == "d"]
    if way == "backward":
        within = name[0] == "z" and (to != rank - 1 or (f"t{name[1:]}", "forward") in spans)
        return _spread(rank, spans, n, source) if within else _present(key, spans, n, source)
    summing = name[0] in "dts" and name != "stem"
    if not summing and not (name[0] == "F" and differences):
        return _present(key, spans, n, source)
    if not differences:
        return set()
    last = max(differences, key=lambda other: own[other][1])
    sums = sorted((other for other in own if other[0][0] == "s" and other[0] != "stem"), key=_number)
    whole = (sums or [last])[-1]
    if name[0] == "d":
        before: Key = (f"d{j - 1}", "forward")
        return {other for other in (before, ("g" + name[1:], way)) if other in own}
    if name[0] == "t":
        return {whole}
    arrived = {other for other, span in spans.items() if span[4] == rank and other[1] == "forward"}
    if name[0] == "s":
        place = sums.index(key)
        there = {other for other in arrived if other[0][0] == "t" and spans[other][3] <= start}
        return there | {sums[place - 1] if place else last}
    if name[1:] == str(int(last[0][1:]) - 1):  # where the sum ends, z of before it is added
        return {whole} | {other for other in arrived if other[0][0] == "z"}
    return _present(key, spans, n, source)


def _number(key: Key) -> int:
    return int(key[0].partition(".")[2])


def _spread(rank: int, spans: dict[Key, Span], n: int, source: str) -> set[Key]:
    """What a gradient waits for that goes from a rank to others of its sum: its arrival there, by whatever way."""
    came: set[Key] = {key for key, span in spans.items() if key[1] == "backward" and span[4] == rank}
    coarse = [key for key, span in spans.items() if key[0][0] == "F" and key[1] == "forward" and span[0] == rank]
    if not coarse:
        return came
    first = min(coarse, key=lambda key: int(key[0][1:]))
    return _present((first[0], "backward"), spans, n, source)


def _present(key: Key, spans: dict[Key, Span], n: int, source: str) -> set[Key]:
    """What an action waits for by the equation; through what is not there."""
    found: set[Key] = set()
    for other in waits_for(key, n, source):
        found |= {other} if other in spans else _present(other, spans, n, source)
    return found
