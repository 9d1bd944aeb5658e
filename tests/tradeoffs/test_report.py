"""A trade-off: its front, the fastest within a tolerance, text and JSON."""

import json

import pytest

from pararealize import pararealize
from pararealize.errors import CalibrationError
from pararealize.tradeoffs.report import Tradeoff, TradeoffRow

from .chains import batches, network


@pytest.fixture(scope="module")
def front() -> Tradeoff:
    model, x = network(), batches(1)[0]
    plans = [
        pararealize(model, n, windows=m, coarse="linear", example_inputs=x).plan for n, m in ((1, 6), (2, 3), (3, 2))
    ]
    errors = (0.0, 0.2, 0.1)
    rows = tuple(TradeoffRow(plan=p, predicted=e, error=e, agreement=1 - e) for p, e in zip(plans, errors, strict=True))
    return Tradeoff(model="Sequential", coarse="linear", samples=10, tested=5, measure="agreement", rows=rows)


def test_front_and_tolerance(front: Tradeoff) -> None:
    assert [row.n for row in front.front] == [1, 3]  # n = 2 is slower and errs more than n = 3
    assert front.within(0.15).n == 3
    assert front.within(0).n == 1
    nearer = Tradeoff(model="M", coarse="linear", samples=1, tested=1, measure="", rows=front.rows[1:])
    with pytest.raises(CalibrationError, match=r"within an error of 0\.05: the smallest is 0\.1, at a speed-up of"):
        nearer.within(0.05)
    for wrong in (-1, float("nan"), "0.1", True):
        with pytest.raises(CalibrationError, match="tolerance is"):
            front.within(wrong)  # type: ignore[arg-type]


def test_text_and_json(front: Tradeoff) -> None:
    assert Tradeoff.from_json(front.to_json()) == front
    text = str(front)
    for words in ("none: the original", "1 | 2, 3 | 4, 5 | 6", "agreement"):
        assert words in text
    assert [line.rstrip().endswith("*") for line in text.splitlines()[3:6]] == [True, False, True]
    for broken in ("", "[]", "{}", json.dumps(json.loads(front.to_json()) | {"version": 9}), '{"version": 1}'):
        with pytest.raises(CalibrationError, match="trade-off"):
            Tradeoff.from_json(broken)
