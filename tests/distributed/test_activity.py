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
    for action, m in (("coarse", 0), ("send sum", 0), ("coarse", 2), ("send end", 2), ("all-reduce", 2)):
        with activity.during(action, 4, "backward", m):
            pass
    activity.recording = None
    with activity.during("head", 4):
        pass
    one_window, several = ["F^3", "send s_4"], ["F^2,3", "send w_1", "sum w_2 over ranks"]
    assert activity.watch.words == [
        "g^2 forward", *(f"{word} backward" for word in one_window + several), "head forward"
    ]  # fmt: skip
    rows = [(row.rank, row.j, row.action, row.direction, row.m) for row in recording.actions]
    assert rows[:2] == [(3, 4, "coarse", "backward", 0), (3, 4, "send sum", "backward", 0)]
    assert [row[4] for row in rows[2:]] == [2, 2, 2]
