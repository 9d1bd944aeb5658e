"""Chrome traces against the fields that the Trace Event Format documents."""

from __future__ import annotations

import itertools
import json

import pytest

from pararealize.plan.simulation import simulate
from pararealize.plan.timeline import Timeline
from pararealize.plan.trace import chrome_trace
from tests.plans import plan_of

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


def nanoseconds(microseconds: float) -> int:
    return round(microseconds * 1000)


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
    trace = chrome_trace(timeline)
    threads = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    found = {event["name"]: event for event in slices(trace)}
    assert len(found) == len(timeline.actions)
    for action in timeline.actions:
        event = found[str(action)]
        assert event["ts"] == pytest.approx(action.start * 1e6, abs=6e-4)
        assert event["dur"] == pytest.approx(action.seconds * 1e6, abs=1.1e-3)
        assert event["pid"] == action.rank + 1
        assert threads[event["tid"]] == ("communication" if action.kind == "transfer" else "compute")
        assert action.direction in event["cat"].split(",")


def test_processes_and_threads_have_numbers_that_perfetto_takes(timeline):
    """It takes 0 for the idle system, and a thread's number for one thread of the machine."""
    events = chrome_trace(timeline)["traceEvents"]
    processes = {event["pid"] for event in events}
    owners = {(event["tid"], event["pid"]) for event in events}
    assert processes == set(range(1, timeline.ranks + 1))
    assert len({thread for thread, _ in owners}) == len(owners)
    assert not processes & {thread for thread, _ in owners}


def test_times_are_whole_nanoseconds(timeline):
    for event in chrome_trace(timeline)["traceEvents"]:
        for time in (event.get("ts", 0), event.get("dur", 0)):
            assert time * 1000 == pytest.approx(round(time * 1000), rel=1e-12)


def test_slices_of_a_thread_do_not_overlap(timeline):
    by_thread = sorted(slices(chrome_trace(timeline)), key=lambda e: (e["pid"], e["tid"], e["ts"], e["dur"]))
    for a, b in itertools.pairwise(by_thread):
        assert (a["pid"], a["tid"]) != (b["pid"], b["tid"]) or nanoseconds(a["ts"]) + nanoseconds(
            a["dur"]
        ) <= nanoseconds(b["ts"])


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
