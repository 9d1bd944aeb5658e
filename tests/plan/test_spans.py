"""Rows of a step with sums over ranks give the timeline that was simulated; those of none are in test_timeline."""

from __future__ import annotations

import random

import pytest

from pararealize.plan.actions import ActionKey, Span
from pararealize.plan.simulation import simulate
from pararealize.plan.spans import needs_of, spans_of
from pararealize.plan.timeline import Timeline
from tests.plans import plan_of, windows_plan


def records_of(timeline: Timeline) -> list[tuple]:
    """What the ranks of that step would have recorded: coarse blocks of a sum once a rank, backward."""
    found = []
    for a in timeline.actions:
        span = (a.direction, a.start, a.end)
        if a.kind != "transfer":
            word = {"d": "difference", "s": "sum"}.get(a.name[0] * (a.kind == "coarse"), a.kind)
            found.append((a.rank, a.j, word, *span))
            continue
        j, forward = int(a.name[1:]), a.direction == "forward"
        if a.name[0] == "t" or (not forward and (a.to != a.rank - 1 or f"t{j}" in {b.name for b in timeline.actions})):
            found.append((a.rank, j, "send sum", a.direction, a.start, a.start))
            found.append((a.to, j, "receive sum", *span))
            continue
        found.append((a.rank, j if forward else j + 1, "send", a.direction, a.start, a.start))
        found.append((a.to, j + 1 if forward else j, "receive", *span))
    return found


def facts(timeline: Timeline, *, needs: bool = True) -> dict:
    return {
        str(a): (a.kind, a.rank, a.to, round(a.start, 6), round(a.end, 6))
        + (({str(timeline.actions[i]) for i in a.after},) if needs else ())
        for a in timeline.actions
    }


@pytest.mark.parametrize(
    "stages, assignment",
    [
        *(([3], None), ([5], None), ([9], None), ([4, 3], None), ([1, 4, 1, 3], None)),
        *(([6], [1, 2, 3]), ([9], [2, 2, 3, 2]), ([5, 4], [2, 1, 4, 2]), ([7, 3], [1, 3, 3, 3])),
    ],
)
def test_records_of_sums_give_the_same_timeline(stages, assignment):
    n = sum(stages)
    plan = plan_of(stages, kind="linear")
    ranks = None if assignment is None else len(assignment)
    timeline = simulate(plan, latency=0.5, rate=1.0, reduce_linear=True, ranks=ranks, assignment=assignment)
    assert any(a.name[0] == "t" for a in timeline.actions)
    records = records_of(timeline)
    random.Random(0).shuffle(records)
    recorded = Timeline.recorded(records, model="Made", n=n)
    assert facts(recorded, needs=False) == facts(timeline, needs=False)
    theirs = facts(timeline)
    for name, row in facts(recorded).items():
        if name[0] == "s" and name != "stem" and name != "stem'":  # sums may wait for any that have come
            assert theirs[name][-1] <= row[-1]
        else:
            assert theirs[name][-1] == row[-1], name
    assert [str(a) for a in recorded.critical_path] == [str(a) for a in timeline.critical_path]


def test_a_message_of_a_sum_alone_waits_for_nothing_that_is_known():
    spans = spans_of([(0, 2, "send sum", "forward", 0.0, 0.0), (1, 2, "receive sum", "forward", 0.0, 1.0)], 3)
    key = ActionKey("send sum", "forward", 2)
    assert spans == {key: Span(0, 2, 0.0, 1.0, 1)}
    assert needs_of(key, spans, "input") == set()


def test_clocks_that_differ_change_no_need():
    """A busy machine lets ranks out of the barrier one after the other: rank 1's clock is ahead of all others here."""
    timeline = simulate(plan_of([3], kind="linear"), latency=0.5, rate=1.0, reduce_linear=True)
    records = records_of(timeline)
    ahead = [(rank, *row, start + 9.0 * (rank == 1), end + 9.0 * (rank == 1)) for rank, *row, start, end in records]
    needs = [
        {str(a): {str(recorded.actions[i]) for i in a.after} for a in recorded.actions}
        for recorded in (Timeline.recorded(rows, model="Made", n=3) for rows in (records, ahead))
    ]
    assert needs[0] == needs[1]
    assert needs[1]["s3.1"] == {"d3", "t2"}


def records_of_windows(timeline: Timeline) -> list[tuple]:
    """What the ranks of a network of several windows would have recorded; one segment a rank and window."""
    found = []
    for a in timeline.actions:
        forward, span = a.direction == "forward", (a.direction, a.start, a.end)
        if a.kind != "transfer":
            word = "difference" if a.name[0] == "d" else a.kind
            found.append((a.rank, a.j, word, *span, 0 if a.kind == "stem" else a.m))
            continue
        letter, j = a.name[0], int(a.name.rpartition("_")[2])
        if letter == "a":
            found.append((a.rank, j, "all-reduce", *span, a.m))
        elif letter == "x" and a.m == 1:  # of the stem's output, under the words for z
            found.append((a.rank, 1 if forward else j, "send", a.direction, a.start, a.start, 0))
            found.append((a.to, j if forward else 1, "receive", *span, 0))
        elif letter == "x":
            found.append((a.rank, j, "send end", a.direction, a.start, a.start, a.m))
            found.append((a.to, j, "receive end", *span, a.m))
        else:
            found.append((a.rank, j if forward else j + 1, "send", a.direction, a.start, a.start, a.m))
            found.append((a.to, j + 1 if forward else j, "receive", *span, a.m))
    return found


@pytest.mark.parametrize("reduce_linear", [False, True])
@pytest.mark.parametrize("lengths", [[2, 2, 2], [1, 2, 2, 1], [3, 2, 3]])
def test_records_of_windows_give_the_same_timeline(lengths, reduce_linear):
    timeline = simulate(windows_plan(lengths), latency=0.5, rate=1.0, reduce_linear=reduce_linear and 3 not in lengths)
    assert any(a.name[0] == "a" for a in timeline.actions) == (reduce_linear and 3 not in lengths)
    records = records_of_windows(timeline)
    random.Random(0).shuffle(records)
    recorded = Timeline.recorded(records, model="Made", n=max(lengths), source="stem")
    theirs, ours = facts(timeline), facts(recorded)
    unseen = {name for name in theirs if name.startswith("x1_")}
    assert theirs.keys() - unseen == ours.keys()
    for name, row in ours.items():
        assert row[:-1] == theirs[name][:-1], name
        if not row[-1] & {"stem", "g1_2'", "C1_2'", "C1_3'"}:  # those that waited through the stem's messages
            assert row[-1] == theirs[name][-1], name
