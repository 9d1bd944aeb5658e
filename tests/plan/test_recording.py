"""Rows of what a rank did when."""

from __future__ import annotations

import time
from typing import ClassVar

import pytest
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


class Event:
    """An event of a device, on which each takes a millisecond more than the one before."""

    made = 0
    waited: ClassVar[list[int]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.number = -1

    def record(self) -> None:
        self.number = Event.made
        Event.made += 1

    def synchronize(self) -> None:
        Event.waited.append(self.number)

    def elapsed_time(self, other: Event) -> float:
        return float(other.number - self.number)


def test_on_a_gpu_rows_are_timed_by_events_and_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda *_: pytest.fail("it waits for the whole device"))
    recording = StepRecording(0, torch.device("cuda"))
    with recording.during(1, "fine", "forward"), recording.during(1, "receive", "forward"):
        pass
    assert not Event.waited
    inner, outer = recording.actions
    assert (outer.start, inner.start, inner.end, outer.end) == (0.001, 0.002, 0.003, 0.004)
