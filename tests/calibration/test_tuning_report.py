"""The report of a fine-tuning: as a table, as JSON and back, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

from pararealize.calibration.rows import Errors
from pararealize.calibration.tuning_report import FineTuning, TuningRow
from pararealize.errors import CalibrationError
from tests.calibration.test_report import calibration


def tuning(**changes: object) -> FineTuning:
    before = Errors(stage="before", adapters=(1.0,), interfaces=(0.0, math.nan), output=0.4, cosine=0.9)
    after = Errors(stage="after", adapters=(1.0,), interfaces=(0.0, 0.1), output=0.2, cosine=0.98)
    values = {
        "model": "Net", "n": 2, "windows": (2,), "blocks": 6, "coarse": "linear",
        "teacher": "Net, its original weights",
        "loss": "kl", "why": "said", "temperature": 2.0, "match": 0.5, "train": "lora:4", "trained": 12345,
        "norms": "keep", "trials": {"keep": 0.25, "train": 0.5}, "steps": 20, "best": 10, "samples": 64, "tested": 16,
        "held_out": "the last 1 of 5 batches",
        "rows": tuple(TuningRow(step=s, lr=1e-3, loss=None if s == 0 else 0.5, held_out=h) for s, h in
                      ((0, 0.4), (10, 0.2), (20, 0.3))),
        "before": before, "after": after, "accuracy": None, "seconds": 1.5,
    }  # fmt: skip
    return FineTuning(**values | changes)


def test_it_prints_as_a_table() -> None:
    assert str(tuning()) == (
        "Net: n = 2, fine-tuned for 20 steps\n"
        "teacher: Net, its original weights\n"
        "loss: kl at temperature 2 (said), and the windows' ends with weight 0.5; measured on 16 samples, "
        "the last 1 of 5 batches\n"
        "trained: lora:4, 12,345 numbers; batch norms keep their statistics (held out, both tried: "
        "keep 0.25, train 0.5)\n"
        "\n"
        "step     lr  loss  held out\n"
        "   0  0.001     –       0.4\n"
        "  10  0.001   0.5       0.2  the best: kept\n"
        "  20  0.001   0.5       0.3\n"
        "\n"
        "                                  before   after\n"
        "output, relative error               0.4     0.2\n"
        "cosine with the original's, mean  0.9000  0.9800\n"
        "\n"
        "usable at this error: output error 0.20"
    )


def test_many_rows_are_thinned_out_and_no_gain_is_told() -> None:
    rows = tuple(TuningRow(step=s, lr=1e-3, loss=0.5, held_out=1.0 + s) for s in range(40))
    text = str(tuning(rows=rows, steps=40, best=0, norms="", trials={}))
    assert text.count("0.001") == 12
    assert "no step made the loss on the batches held out smaller: the network is as it was" in text
    assert "batch norms" not in text
    classes = Errors(stage="after", adapters=(), interfaces=(), output=0.2, agreement=0.5, accuracy=0.75)
    shown = str(tuning(before=classes, after=classes, accuracy=0.875))
    assert "same class as the original   50.00 %  50.00 %" in shown
    assert "accuracy (original 87.50 %)  75.00 %  75.00 %" in shown
    shown = str(tuning(before=classes, after=classes, accuracy=0.875, reference="teacher"))
    assert "same class as the teacher   50.00 %  50.00 %" in shown
    assert "accuracy 75.00 % of the teacher's 87.50 %" in shown


def test_json_there_and_back() -> None:
    one = tuning(calibration=calibration())
    again = FineTuning.from_json(one.to_json())
    assert again.to_json() == one.to_json()
    assert math.isnan(again.before.interfaces[1])
    assert again.calibration.fits == one.calibration.fits
    assert (again.loss_before, again.loss_after) == (0.4, 0.2)
    assert not one.judge(0.1).usable
    with pytest.raises(CalibrationError, match="tolerance is -1"):
        one.judge(-1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 9}, "of version 9"),
        ({"steps": "20"}, "steps: Input should be a valid integer"),
        ({"colour": 1}, "colour: Unexpected keyword argument"),
        ({"best": 5}, "its best step, 5, is none"),
        ({"best": 20}, "not that of the smallest loss"),
        ({"steps": 19}, "its losses are behind steps 0, 10, 20 of 19"),
        ({"n": 3}, "its longest window has 2 segments; n = 3"),
        ({"verdict": None}, "its verdict does not follow"),
    ],
)
def test_a_changed_report_is_refused(changes: dict[str, object], message: str) -> None:
    values = json.loads(tuning().to_json()) | changes
    with pytest.raises(CalibrationError) as raised:
        FineTuning.from_json(json.dumps(values))
    assert message in str(raised.value)


def test_other_json_is_refused() -> None:
    for text, message in (("[]", "it is a list"), ("{", "not JSON")):
        with pytest.raises(CalibrationError, match=message):
            FineTuning.from_json(text)
