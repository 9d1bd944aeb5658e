"""Times of calls: in turn, medians, and inputs of any batch size."""

import pytest
import torch

from pararealize.comparison import latency
from pararealize.comparison.latency import SECONDS, WARMUP, measure_latency, of_batch_size
from pararealize.errors import ExampleError


def test_medians_of_calls_in_turn(monkeypatch):
    """By a clock that each call moves on: the slow first calls and one outlier leave no trace."""
    clock, calls = [0.0], []
    monkeypatch.setattr(latency, "now", lambda device: clock[0])

    def call(name, seconds):
        def run():
            calls.append(name)
            clock[0] += 100.0 if len(calls) <= 2 * WARMUP or len(calls) == 7 else seconds

        return run

    measured = measure_latency(call("a", 3.0), call("b", 2.0), batch=4, rounds=5, device=torch.device("cpu"))
    assert (measured.original, measured.parareal, measured.ratio, measured.batch) == (3.0, 2.0, 1.5, 4)
    assert "".join(calls) == "baabbaabbaabba"


def test_every_call_has_inputs_of_its_own():
    x, seen = torch.ones(1), []
    inputs = (x,), {"factor": 2}
    measured = measure_latency(
        *[lambda x, factor: seen.append(x.mul_(factor).item())] * 2,
        batch=1, rounds=2, device=torch.device("cpu"), inputs=inputs,
    )  # fmt: skip
    assert set(seen) == {2.0}
    assert len(seen) == 2 * (WARMUP + measured.rounds)
    assert x.item() == 1


def test_short_calls_are_repeated(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(latency, "now", lambda device: clock[0])

    def run():
        clock[0] += SECONDS / 100

    measured = measure_latency(run, run, batch=1, rounds=3, device=torch.device("cpu"))
    assert 40 < measured.rounds < 60


def test_inputs_of_any_size():
    inputs = (torch.arange(6).view(3, 2), {"scale": torch.tensor(2.0), "flag": True})
    again = of_batch_size(inputs, 4)
    assert again[0].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert (again[1]["scale"].shape, again[1]["flag"]) == ((), True)
    assert of_batch_size(inputs, 1)[0].shape == (1, 2)
    with pytest.raises(ExampleError, match="no tensor with samples"):
        of_batch_size({"flag": True}, 2)
