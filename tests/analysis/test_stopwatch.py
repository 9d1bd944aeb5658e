"""The stopwatch on things whose clock is ours."""

from __future__ import annotations

import torch

from pararealize.analysis import stopwatch as module
from pararealize.analysis.stopwatch import median_seconds


class Scripted:
    """Takes the seconds that its script says."""

    def __init__(self, name: str, script: list[tuple[float, float]], clock: dict, log: list[str]) -> None:
        self.name, self.script, self.clock, self.log = name, script, clock, log

    def reset(self) -> None:
        self.clock["now"] += 1000.0  # not timed
        self.taken = self.script.pop(0)

    def forward(self) -> str:
        self.log.append(self.name)
        self.clock["now"] += self.taken[0]
        return self.name

    def backward(self, outputs: str) -> None:
        assert outputs == self.name
        self.clock["now"] += self.taken[1]


def test_medians_after_warmup_in_turn(monkeypatch):
    clock, log = {"now": 0.0}, []
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock["now"])
    a = Scripted("a", [(99, 99), (1, 10), (5, 20), (2, 90)], clock, log)
    b = Scripted("b", [(99, 99), (7, 1), (7, 3), (8, 2)], clock, log)
    assert median_seconds([a, b], torch.device("cpu"), repeats=3, warmup=1) == [(2, 20), (7, 2)]
    assert log == ["a", "b"] * 4
