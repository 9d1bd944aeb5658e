"""Timeline -> a Chrome trace: a dict that, as JSON, opens in Perfetto (ui.perfetto.dev) and in chrome://tracing.

Each rank is a process with one thread for what it computes and one or more for what it sends; arrows lead from a
message to what waited for it. Fields are those of the Trace Event Format: complete events (``X``), metadata (``M``) and
flows (``s`` to ``f``), times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .timeline import Action, Timeline

__all__ = ["chrome_trace"]

_MICRO = 1e6
_INSIDE = 1e-3  # the share of a slice before whose end an arrow leaves
_COMPUTE = 0  # thread id; threads of messages follow
_COLOURS = {  # names that the format reserves
    "fine": "thread_state_running",
    "coarse": "thread_state_runnable",
    "adapter": "rail_idle",
    "relax": "rail_idle",
    "stem": "rail_response",
    "head": "rail_response",
    "transfer": "rail_load",
}


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace of a timeline; ``json.dumps`` of it is a file that Perfetto opens.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks, make_plan, simulate
        >>> from pararealize.models import resnet20
        >>> plan = make_plan(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))), 2)
        >>> trace = chrome_trace(simulate(plan))
        >>> [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
        ['rank 0: segment 1', 'rank 1: segment 2']
    """
    lanes = _lanes(timeline)
    return {
        "displayTimeUnit": "ms",
        "otherData": {"model": timeline.model, "origin": timeline.origin, "notes": "; ".join(timeline.notes)},
        "traceEvents": [
            *_names(timeline, lanes),
            *(_slice(i, action, lanes) for i, action in enumerate(timeline.actions)),
            *_flows(timeline, lanes),
        ],
    }


def _lanes(timeline: Timeline) -> dict[int, int]:
    """The thread of every transfer: those of one rank that overlap stand in different ones."""
    free: dict[tuple[int, int], float] = {}
    lanes: dict[int, int] = {}
    for i, action in enumerate(timeline.actions):
        if action.kind == "transfer":
            lane = 1
            while free.get((action.rank, lane), action.start) > action.start:
                lane += 1
            free[action.rank, lane] = action.end
            lanes[i] = lane
    return lanes


def _names(timeline: Timeline, lanes: dict[int, int]) -> Iterator[dict[str, Any]]:
    for rank in range(timeline.ranks):
        own = sorted({action.j for action in timeline.of(rank)})
        held = f"segments {own[0]}–{own[-1]}" if len(own) > 1 else f"segment {own[0]}" if own else "idle"
        threads = {lanes[i] for i, action in enumerate(timeline.actions) if i in lanes and action.rank == rank}
        yield _about("process_name", rank, _COMPUTE, name=f"rank {rank}: {held}")
        yield _about("process_sort_index", rank, _COMPUTE, sort_index=rank)
        for thread in (_COMPUTE, *sorted(threads)):
            yield _about("thread_name", rank, thread, name="communication" if thread else "compute")
            yield _about("thread_sort_index", rank, thread, sort_index=thread)


def _about(what: str, rank: int, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": rank, "tid": thread, "args": arguments}


def _slice(i: int, action: Action, lanes: dict[int, int]) -> dict[str, Any]:
    to = {} if action.to is None else {"to": f"rank {action.to}"}
    return {
        "name": str(action),
        "cat": f"{action.kind},{action.direction}",
        "ph": "X",
        "pid": action.rank,
        "tid": lanes.get(i, _COMPUTE),
        "ts": action.start * _MICRO,
        "dur": action.seconds * _MICRO,
        "cname": _COLOURS[action.kind],
        "args": {"segment": action.j, "direction": action.direction, "kind": action.kind} | to,
    }


def _flows(timeline: Timeline, lanes: dict[int, int]) -> Iterator[dict[str, Any]]:
    """An arrow from what is sent to the transfer, and one from the transfer to each action that waits for it."""
    number = 0
    for i, action in enumerate(timeline.actions):
        for other in action.after:
            if i in lanes or other in lanes:
                number += 1
                source = timeline.actions[other]
                flow = {"name": str(source if other in lanes else action), "cat": "message", "id": number}
                inside = source.end - _INSIDE * source.seconds  # at its very end, the next slice would be meant
                begin = max(min(inside, action.start), source.start)
                yield flow | {"ph": "s", "pid": source.rank, "tid": lanes.get(other, _COMPUTE), "ts": begin * _MICRO}
                place = {"pid": action.rank, "tid": lanes.get(i, _COMPUTE), "ts": max(action.start, begin) * _MICRO}
                yield flow | {"ph": "f", "bp": "e"} | place
