"""Timeline -> a Chrome trace: a dict that, as JSON, opens in Perfetto (ui.perfetto.dev) and in chrome://tracing.

Each rank is a process with one thread for what it computes and one or more for what it sends; arrows lead from a
message to what waited for it. Fields are those of the Trace Event Format
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): complete events (``X``), metadata
(``M``) and flows (``s`` to ``f``), times in microseconds, of whole nanoseconds: Perfetto rounds starts and lengths one
by one, and drops a slice that then ends in the next. It also takes process 0 and thread 0 for those of an idle system,
and a number of a thread for one thread of the whole machine: so rank r is process r + 1, and no two threads share a
number.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pararealize.argument_types import typed_arguments
from pararealize.errors import PlanError
from pararealize.table import from_to

from .actions import Action
from .timeline import Timeline

__all__ = ["chrome_trace"]

_NANO = 1e9
_COMPUTE = 0  # lane of a rank; those of messages follow
_COLOURS = {  # names that the format reserves
    "fine": "thread_state_running", "coarse": "thread_state_runnable", "adapter": "rail_idle", "relax": "rail_idle",
    "stem": "rail_response", "head": "rail_response", "transfer": "rail_load",
}  # fmt: skip


@typed_arguments(PlanError)
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
    threads = _threads(timeline, lanes)
    return {
        "displayTimeUnit": "ms",
        "otherData": {"model": timeline.model, "origin": timeline.origin, "notes": "; ".join(timeline.notes)},
        "traceEvents": [
            *_names(timeline, threads),
            *(_slice(action, threads[action.rank, lane]) for action, lane in zip(timeline.actions, lanes, strict=True)),
            *_flows(timeline, lanes, threads),
        ],
    }


def _lanes(timeline: Timeline) -> list[int]:
    """The lane of every action, within its rank: transfers of one rank that overlap stand in different ones."""
    free: dict[tuple[int, int], int] = {}
    lanes = []
    for action in timeline.actions:
        lane = _COMPUTE
        if action.kind == "transfer":
            lane, (start, end) = 1, _nanoseconds(action)
            while free.get((action.rank, lane), start) > start:
                lane += 1
            free[action.rank, lane] = end
        lanes.append(lane)
    return lanes


def _threads(timeline: Timeline, lanes: Sequence[int]) -> dict[tuple[int, int], int]:
    """A number for each lane of each rank, beyond those of the processes."""
    used = {(rank, _COMPUTE) for rank in range(timeline.ranks)}
    used |= {(action.rank, lane) for action, lane in zip(timeline.actions, lanes, strict=True)}
    return {place: timeline.ranks + i for i, place in enumerate(sorted(used), 1)}


def _nanoseconds(action: Action) -> tuple[int, int]:
    """From when to when, in nanoseconds."""
    return round(action.start * _NANO), round(action.end * _NANO)


def _names(timeline: Timeline, threads: Mapping[tuple[int, int], int]) -> Iterator[dict[str, Any]]:
    for rank in range(timeline.ranks):
        segments = timeline.segments(rank)
        noun = "segment" if len(segments) == 1 else "segments"
        first = threads[rank, _COMPUTE]
        work = f"{noun} {from_to(segments)}" if segments else "idle"
        yield _metadata("process_name", rank, first, name=f"rank {rank}: {work}")
        yield _metadata("process_sort_index", rank, first, sort_index=rank)
        for (owner, lane), thread in threads.items():
            if owner == rank:
                yield _metadata("thread_name", rank, thread, name="communication" if lane else "compute")
                yield _metadata("thread_sort_index", rank, thread, sort_index=lane)


def _metadata(field: str, rank: int, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"name": field, "ph": "M"} | _place(rank, thread) | {"args": arguments}


def _place(rank: int, thread: int) -> dict[str, Any]:
    return {"pid": rank + 1, "tid": thread}


def _slice(action: Action, thread: int) -> dict[str, Any]:
    to = {} if action.to is None else {"to": f"rank {action.to}"}
    start, end = _nanoseconds(action)
    return {
        "name": str(action),
        "cat": f"{action.kind},{action.direction}",
        "ph": "X",
        **_place(action.rank, thread),
        "ts": start / 1000,
        "dur": (end - start) / 1000,
        "cname": _COLOURS[action.kind],
        "args": ({"window": action.m} if action.m else {})
        | {"segment": action.j, "direction": action.direction, "kind": action.kind}
        | to,
    }


def _flows(
    timeline: Timeline, lanes: Sequence[int], threads: Mapping[tuple[int, int], int]
) -> Iterator[dict[str, Any]]:
    """An arrow from what is sent to the transfer, and one from the transfer to each action that waits for it."""
    pairs = [(other, i) for i, action in enumerate(timeline.actions) for other in action.after]
    messages = [(other, i) for other, i in pairs if lanes[other] or lanes[i]]
    for number, (other, i) in enumerate(messages, 1):
        source, action = timeline.actions[other], timeline.actions[i]
        flow = {"name": str(source if lanes[other] else action), "cat": "message", "id": number}
        (begin, end), (start, _) = _nanoseconds(source), _nanoseconds(action)
        leaves = max(min(end - 1, start), begin)  # at its very end, the next slice would be meant
        yield flow | {"ph": "s", **_place(source.rank, threads[source.rank, lanes[other]]), "ts": leaves / 1000}
        place = _place(action.rank, threads[action.rank, lanes[i]])
        yield flow | {"ph": "f", "bp": "e", **place, "ts": max(start, leaves) / 1000}
