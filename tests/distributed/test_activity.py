"""What a rank does is said to the watchdog in formulas, and recorded by kind and segment."""

import torch
import torch.distributed as dist

from pararealize.distributed.activity import Activity
from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.plan.recording import StepRecording


class Listening(Watch):
    """A watchdog of one rank that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(dist.HashStore(), rank=0, who=["rank 0"])
        self.words: list[str] = []

    def doing(self, what: str) -> None:
        self.words.append(what)
        super().doing(what)


def test_the_watchdog_hears_formulas_and_a_recording_has_rows() -> None:
    activity = Activity(Listening())
    with activity.during("fine", 2):
        pass
    activity.recording = recording = StepRecording(3, torch.device("cpu"))
    for action in ("coarse", "send sum"):
        with activity.during(action, 4, "backward"):
            pass
    activity.recording = None
    with activity.during("head", 4):
        pass
    assert activity.watch.words == ["g^2 forward", "F^3 backward", "send s_4 backward", "head forward"]
    rows = [(row.rank, row.j, row.action, row.direction) for row in recording.actions]
    assert rows == [(3, 4, "coarse", "backward"), (3, 4, "send sum", "backward")]
