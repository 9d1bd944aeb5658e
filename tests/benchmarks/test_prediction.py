"""The tables of predictions, from rows by hand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.prediction import __main__ as prediction
from benchmarks.prediction.published import errors

ROWS = {
    "paper_rows": {"rows": [{"run": "N = 3", "predicted": 2.0, "published": 2.5, "seconds": 0.2}]},
    "net, batch 2": {
        "one": {"predicted": 2.0, "measured": 2.0, "steps": 5},
        "parareal": {"predicted": 1.0, "measured": 1.25},
        "copies": {"predicted": 1.5, "measured": 1.0},
    },
}


def test_tables():
    text = prediction.markdown(ROWS)
    assert "| N = 3 | 2.00 | 2.50 | 200 |  |" in text
    assert "| net, batch 2 | 2000.0 / 2000.0 | 1500.0 / 1000.0 |  | 1000.0 / 1250.0 |  |" in text


def test_judgement():
    score = prediction.judged(ROWS)
    assert (score["winners"], score["cases"]) == (0, 1)
    assert abs(score["median_error"] - 0.2) < 1e-12
    assert [round(value, 3) for value in errors(ROWS["paper_rows"]["rows"])] == [0.2]
