"""Chrome traces against the fields that the Trace Event Format documents."""

from __future__ import annotations

import itertools
import json

import pytest
from plans import plan_of

from pararealize.schedule import simulate
from pararealize.timeline import Timeline
from pararealize.trace import chrome_trace

VARIANTS = {
    "chain": simulate(plan_of([2, 2]), latency=1e-5),
    "reduced": simulate(plan_of([6, 2], kind="linear"), latency=1e-5, reduce_linear=True),
    "stem": simulate(plan_of([3], source="stem"), latency=1e-5, ranks=2),
    "free": simulate(plan_of([2, 2])),
}


@pytest.fixture(params=VARIANTS, name="timeline")
def _timeline(request) -> Timeline:
    return VARIANTS[request.param]


def slices(trace: dict) -> list[dict]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_fields(timeline):
    trace = json.loads(json.dumps(chrome_trace(timeline)))
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert {"name", "ph", "pid", "tid"} <= set(event)
        assert event["ph"] in ("X", "M", "s", "f")
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            assert set(event["args"]) <= {"name", "sort_index"}
        else:
            assert event["ts"] >= 0
            assert isinstance(event["cat"], str)
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "f":
            assert event["bp"] == "e"


def test_a_slice_an_action_in_microseconds(timeline):
    found = {event["name"]: event for event in slices(chrome_trace(timeline))}
    assert len(found) == len(timeline.actions)
    for action in timeline.actions:
        event = found[str(action)]
        assert (event["ts"], event["dur"]) == (action.start * 1e6, action.seconds * 1e6)
        assert event["pid"] == action.rank
        assert (event["tid"] == 0) == (action.kind != "transfer")
        assert action.direction in event["cat"].split(",")


def test_slices_of_a_thread_do_not_overlap(timeline):
    by_thread = sorted(slices(chrome_trace(timeline)), key=lambda e: (e["pid"], e["tid"], e["ts"], e["dur"]))
    for a, b in itertools.pairwise(by_thread):
        assert (a["pid"], a["tid"]) != (b["pid"], b["tid"]) or a["ts"] + a["dur"] <= b["ts"] * (1 + 1e-12) + 1e-9


def test_arrows_lead_from_a_slice_into_a_slice(timeline):
    trace = chrome_trace(timeline)
    flows = [event for event in trace["traceEvents"] if event["ph"] in "sf"]
    ids = [event["id"] for event in flows if event["ph"] == "s"]
    assert sorted(ids) == sorted(set(ids)) == sorted(event["id"] for event in flows if event["ph"] == "f")
    transfers = [i for i, action in enumerate(timeline.actions) if action.kind == "transfer"]
    edges = [
        (a, i) for i, action in enumerate(timeline.actions) for a in action.after if a in transfers or i in transfers
    ]
    assert len(ids) == len(edges) > 0
    by_id = {(event["id"], event["ph"]): event for event in flows}
    for i in ids:
        begin, end = by_id[i, "s"], by_id[i, "f"]
        assert begin["ts"] <= end["ts"]
        for event in (begin, end):
            assert any(
                s["pid"] == event["pid"] and s["tid"] == event["tid"] and s["ts"] <= event["ts"] <= s["ts"] + s["dur"]
                for s in slices(trace)
            )


def test_ranks_have_names(timeline):
    events = chrome_trace(timeline)["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert len(names) == timeline.ranks
    assert names[0].startswith("rank 0: segment")
