"""Rows of what a rank did when."""

import time

import torch

from pararealize.plan.recording import RecordedAction, StepRecording
from pararealize.plan.timeline import Timeline


def test_rows_stand_in_the_order_in_which_they_ended() -> None:
    recording = StepRecording(3, torch.device("cpu"))
    with recording.during(2, "fine", "forward"), recording.during(2, "receive", "forward"):
        time.sleep(0.002)
    recording.add(1, "head", "backward", 5.0, 6.0)
    inner, outer, added = recording.actions
    assert (inner.action, outer.action) == ("receive", "fine")
    assert 0 <= outer.start <= inner.start < inner.end <= outer.end
    assert inner.end - inner.start >= 0.002
    assert added == (3, 1, "head", "backward", 5.0, 6.0, 0)


def test_rows_and_plain_tuples_give_one_timeline() -> None:
    recording = StepRecording(0, torch.device("cpu"))
    recording.add(1, "stem", "forward", 0.0, 1.0)
    recording.add(1, "fine", "forward", 1.0, 3.0)
    tuples = [(0, 1, "stem", "forward", 0.0, 1.0, 0), (0, 1, "fine", "forward", 1.0, 3.0, 0)]
    assert recording.actions == tuples == [RecordedAction(*row) for row in tuples]
    timelines = [Timeline.recorded(rows, model="Made", n=1) for rows in (recording.actions, tuples)]
    assert timelines[0] == timelines[1]
    assert [str(action) for action in timelines[0].critical_path] == ["stem", "g1"]
