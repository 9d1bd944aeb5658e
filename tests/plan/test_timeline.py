"""Timelines: what follows from them, JSON there and back, records of a real step, and every fault by name."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from pararealize.errors import PlanError
from pararealize.plan.actions import Action
from pararealize.plan.simulation import simulate
from pararealize.plan.timeline import Timeline
from tests.plans import plan_of


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return simulate(plan_of([2, 1]), latency=0.5, rate=1.0)


def records_of(timeline: Timeline) -> list[tuple]:
    """What the ranks of that step would have recorded, seen from another zero of the clock."""
    words = {"stem": "stem", "adapter": "adapter", "fine": "fine", "coarse": "coarse", "head": "head"}
    found = []
    for a in timeline.actions:
        if a.kind != "transfer":
            found.append((a.rank, a.j, words[a.kind], a.direction, 100 + a.start, 100 + a.end))
            continue
        to = a.j + 1 if a.direction == "forward" else a.j - 1
        found.append((a.rank, a.j, "send", a.direction, 100 + a.start, 100 + a.start))
        found.append((a.to, to, "receive", a.direction, 90 + a.start, 100 + a.end))  # it waits from early on
    return found


def test_what_follows_from_it(timeline):
    work = 2 * (1 + 2)  # of two samples, forward and backward
    assert timeline.serial == 5 * work
    assert timeline.step == pytest.approx(2 * (2 * (1 + 1 + 1) + 0.5 * 2 + 0) + 2 * 3 + 2 * 3, abs=20)
    assert timeline.speedup == timeline.serial / timeline.step
    assert timeline.efficiency == timeline.speedup / 3
    for rank in range(3):
        assert timeline.busy(rank) + timeline.idle(rank) == pytest.approx(timeline.step)
        assert timeline.busy(rank) == timeline.busy(rank, direction="forward") + timeline.busy(
            rank, direction="backward"
        )
        assert timeline.busy(rank, "fine") == work
    assert [str(a) for a in timeline.critical_path][-2:] == ["g1'", "stem'"]


def test_json_there_and_back(timeline):
    assert Timeline.from_json(timeline.to_json()) == timeline
    reduced = simulate(plan_of([4], kind="linear"), reduce_linear=True, ranks=2)
    assert Timeline.from_json(reduced.to_json()) == reduced


def test_records_of_a_step_give_the_same_timeline(timeline):
    records = records_of(timeline)
    random.Random(0).shuffle(records)
    recorded = Timeline.recorded(records, model="Made", n=3, notes=["here"])
    assert recorded.origin == "recorded"
    assert recorded.notes == ("here",)

    def facts(t: Timeline) -> dict:
        return {
            str(a): (
                a.kind,
                a.j,
                a.rank,
                a.to,
                round(a.start, 6),
                round(a.end, 6),
                {str(t.actions[i]) for i in a.after},
            )
            for a in t.actions
        }

    assert facts(recorded) == facts(timeline)
    assert recorded.step == pytest.approx(timeline.step)
    assert [str(a) for a in recorded.critical_path] == [str(a) for a in timeline.critical_path]


def test_records_of_fewer_ranks_wait_through_what_is_not_sent():
    timeline = simulate(plan_of([4]), ranks=2, latency=0.5, rate=1.0)
    recorded = Timeline.recorded(records_of(timeline), model="Made", n=4)
    needs = {str(a): {str(recorded.actions[i]) for i in a.after} for a in recorded.actions}
    assert needs["F1"] == {"g2", "g1"}
    assert needs["F2"] == {"g3", "z2"}
    assert recorded.ranks == 2


def test_what_ranks_compute_for_themselves_is_theirs():
    """Masks and tables, and the stem where every rank computes it for its adapter."""
    spans = {
        (1, "stem"): (0, 1),
        (2, "stem"): (0, 2),
        (2, "adapter"): (2, 3),
        (2, "context"): (3, 4),
        (2, "fine"): (4, 5),
    }
    records = [(j - 1, j, what, "forward", *map(float, span)) for (j, what), span in spans.items()]
    timeline = Timeline.recorded(records, model="Made", n=2, source="stem")
    assert {str(a): (a.kind, a.start, a.end) for a in timeline.actions} == {
        "stem": ("stem", 0.0, 1.0),
        "C2": ("adapter", 0.0, 3.0),
        "c2": ("adapter", 3.0, 4.0),
        "g2": ("fine", 4.0, 5.0),
    }
    assert timeline.serial == 2.0


def test_messages_of_shared_values_are_told_from_interface_values():
    """Sent under the same names: before z_1 forward, after its gradient backward."""
    records = [
        (0, 1, "stem", "forward", 0.0, 1.0),
        (0, 1, "send", "forward", 1.0, 1.1),
        (1, 2, "receive", "forward", 0.0, 1.2),
        (0, 1, "fine", "forward", 1.1, 3.0),
        (1, 2, "fine", "forward", 1.2, 2.5),
        (0, 1, "send", "forward", 3.0, 3.1),
        (1, 2, "receive", "forward", 2.5, 3.5),
        (1, 2, "coarse", "forward", 3.5, 4.0),
        (1, 2, "coarse", "backward", 4.0, 5.0),
        (1, 2, "send", "backward", 5.0, 5.1),
        (0, 1, "receive", "backward", 4.0, 5.5),
        (0, 1, "fine", "backward", 5.5, 7.0),
        (1, 2, "fine", "backward", 5.1, 6.0),
        (1, 2, "send", "backward", 6.0, 6.1),
        (0, 1, "receive", "backward", 7.0, 7.2),
    ]
    for shuffled in (records, records[::-1]):
        timeline = Timeline.recorded(shuffled, model="Made", n=2, source="stem")
        sent = {str(a): (a.rank, a.to, a.start, a.end) for a in timeline.actions if a.kind == "transfer"}
        assert sent == {"z1": (0, 1, 3.0, 3.5), "z1'": (1, 0, 5.0, 5.5)}
        assert [str(a) for a in timeline.critical_path] == ["stem", "g1", "z1", "F1", "F1'", "z1'", "g1'"]


def test_several_records_of_one_thing_are_joined():
    records = [
        (0, 1, "fine", "forward", 3.0, 4.0),
        (0, 1, "fine", "forward", 1.0, 2.0),
        (0, 1, "stem", "forward", 0.5, 1.0),
    ]
    actions = Timeline.recorded(records, model="Made", n=1).actions
    assert [(str(a), a.start, a.end) for a in actions] == [("stem", 0.0, 0.5), ("g1", 0.5, 3.5)]


@pytest.mark.parametrize(
    "record",
    [
        (0, 1, "thinking", "forward", 0.0, 1.0),
        (0, 1, "fine", "sideways", 0.0, 1.0),
        (0, 4, "fine", "forward", 0.0, 1.0),
        (-1, 1, "fine", "forward", 0.0, 1.0),
        (0, 1, "fine", "forward", 2.0, 1.0),
    ],
)
def test_records_that_cannot_be_read(record):
    with pytest.raises(PlanError, match="cannot be read for n = 3"):
        Timeline.recorded([record], model="Made", n=3)


def test_no_records():
    with pytest.raises(PlanError, match="there are no records"):
        Timeline.recorded([], model="Made", n=3)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(version=7), "no timeline of version 1 (its version is 7)"),
        (lambda d: d.pop("model"), "model: Field required"),
        (lambda d: d["actions"][0].update(kind="rest"), "actions.0.kind"),
        (lambda d: d["actions"][0].update(rank=9), "is on rank 9 of 3"),
        (lambda d: d["actions"][0].update(end=-1.0), "ends before it starts"),
        (lambda d: d["actions"][0].update(after=[99]), "comes after actions that are not there"),
        (lambda d: d["actions"].append(d["actions"][0]), "there are two actions"),
        (lambda d: d["actions"][-1].update(start=0.0), "starts before what it needs is there"),
    ],
)
def test_texts_that_cannot_be_read(timeline, change, message):
    data = json.loads(timeline.to_json())
    change(data)
    with pytest.raises(PlanError) as raised:
        Timeline.from_json(json.dumps(data))
    assert message in str(raised.value)


def test_text_that_is_no_json():
    with pytest.raises(PlanError, match="this is not JSON"):
        Timeline.from_json("{")


def test_recorded_clocks_may_disagree(timeline):
    """Two machines' clocks: a receive that seems to start before the send is no fault of a recorded timeline."""
    early = dataclasses.replace(timeline.actions[-1], start=0.0)
    again = dataclasses.replace(timeline, origin="recorded", actions=(*timeline.actions[:-1], early))
    assert again.actions[-1].start == 0.0


def test_an_empty_timeline():
    nothing = Timeline(model="Made", n=1, ranks=1, origin="recorded", actions=())
    assert (nothing.step, nothing.speedup, nothing.critical_path) == (0.0, 1.0, ())
    assert "Made" in str(nothing)


def test_actions_print_as_in_the_mathematics():
    action = Action(name="g3", kind="fine", direction="backward", j=3, rank=2, start=1.0, end=3.0)
    assert str(action) == "g3'"
    assert action.seconds == 2.0


# The table of a timeline --------------------------------------------------------------------------------------------


def test_a_row_a_rank_and_what_follows():
    timeline = simulate(plan_of([2, 1]), ranks=2, rate=1e3)
    lines = str(timeline).splitlines()
    assert lines[0] == "Made: one simulated step, n = 3 on 2 devices, times in ms"
    assert lines[2].split()[:3] == ["rank", "segments", "fine"]
    fine, forward = timeline.busy(0, "fine") * 1e3, timeline.busy(0, direction="forward") * 1e3
    row = lines[3].split()
    assert row[:3] == ["0", "1–2", f"{fine:.2f}"]
    assert f"{forward:.2f}" in row
    assert len(lines[4].split()) == len(row)
    text = str(timeline)
    assert f"speed-up {timeline.speedup:.2f}×, efficiency {100 * timeline.efficiency:.0f} %" in text
    assert "critical path: " + " → ".join(map(str, timeline.critical_path)) in text
    assert "note: batch 2" in text


def test_no_line_is_wider_than_120():
    assert max(map(len, str(simulate(plan_of([8, 8, 8]), latency=1e-5)).splitlines())) <= 120


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["actions"][0].update(name="nn"), "action 0, nn, is no stem"),
        (lambda d: d["actions"][0].update(name="g7"), "action 0, g7, is no stem"),
        (lambda d: d["actions"][0].update(to=1), "is a stem to rank 1"),
        (lambda d: d["actions"][0].update(j=4), "is of segment 4 of 3"),
        (lambda d: d.update(ranks=2**30), "there are 1073741824 ranks, and 3 of them do something"),
        (lambda d: d["actions"][0].update(end=1e300), "actions.0.end: Input should be less than"),
        (lambda d: d["actions"][0].update(after=[True]), "actions.0.after.0: Input should be a valid integer"),
    ],
)
def test_what_a_file_says_that_no_step_can_be(timeline, change, message):
    data = json.loads(timeline.to_json())
    change(data)
    with pytest.raises(PlanError) as raised:
        Timeline.from_json(json.dumps(data))
    assert message in str(raised.value)


def test_a_simulated_rank_computes_one_action_at_a_time():
    times = {"C2": (0.0, 2.0), "C3": (1.0, 3.0)}
    actions = [
        Action(name=name, kind="adapter", direction="forward", j=int(name[1]), rank=0, start=start, end=end)
        for name, (start, end) in times.items()
    ]
    both = Timeline(model="Made", n=3, ranks=1, origin="simulated", actions=tuple(actions))
    with pytest.raises(PlanError, match="rank 0 computes C2 until 2 s and C3 from 1 s"):
        Timeline.from_json(both.to_json())
    recorded = dataclasses.replace(both, origin="recorded")  # a real one has threads and streams
    assert Timeline.from_json(recorded.to_json()) == recorded


def test_a_circle_ends_and_is_refused(timeline):
    """Actions of no length may each come after the other by their times; the longest path went round for ever."""
    data = json.loads(timeline.to_json())
    for action in data["actions"]:
        action["start"] = action["end"] = 0.0
    data["actions"][0]["after"], data["actions"][1]["after"] = [1], [0]
    with pytest.raises(PlanError, match="actions wait for one another"):
        Timeline.from_json(json.dumps(data))
    actions = [dataclasses.replace(timeline.actions[i], start=0.0, end=0.0, after=(1 - i,)) for i in (0, 1)]
    circle = dataclasses.replace(timeline, actions=tuple(actions), origin="recorded")
    assert len(circle.critical_path) == 2
