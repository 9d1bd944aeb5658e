"""Rows of what a rank did when."""

import time

import torch

from pararealize.plan.recording import StepRecording


def test_rows_stand_in_the_order_in_which_they_ended() -> None:
    recording = StepRecording(3, torch.device("cpu"))
    with recording.during(2, "fine", "forward"), recording.during(2, "receive", "forward"):
        time.sleep(0.002)
    recording.add(1, "head", "backward", 5.0, 6.0)
    inner, outer, added = recording.actions
    assert (inner.action, outer.action) == ("receive", "fine")
    assert 0 <= outer.start <= inner.start < inner.end <= outer.end
    assert inner.end - inner.start >= 0.002
    assert added == (3, 1, "head", "backward", 5.0, 6.0)
