"""The report: as a table, as JSON and back."""

import dataclasses
import json
import math

import pytest

from pararealize.calibration.report import Calibration
from pararealize.calibration.rows import CorrectionChoice, Errors, Fit
from pararealize.errors import CalibrationError


def calibration(**changes: object) -> Calibration:
    fits = (
        Fit(part="C2", kind="conv 1×1 3→4", method="least squares", seconds=0.5),
        Fit(part="F1", kind="paper", method="distilled, last layer solved", seconds=2.0),
    )
    before = Errors(
        stage="before", adapters=(1.25,), interfaces=(0.0, math.inf), output=2.0, agreement=0.1, accuracy=0.2
    )
    after = Errors(stage="after", adapters=(0.5,), interfaces=(0.0, 0.00012), output=0.1, agreement=0.95, accuracy=0.9)
    values = {
        "model": "Net", "n": 2, "windows": (2,), "blocks": 6, "coarse": "paper", "outputs": "classes", "why": "said",
        "samples": 100, "tested": 20,
        "held_out": True, "accuracy": 0.925, "fits": fits, "stages": (before, after),
    }  # fmt: skip
    return Calibration(**values | changes)


def test_it_prints_as_a_table() -> None:
    assert str(calibration()) == (
        "Net: n = 2, coarse 'paper', fitted to 100 samples, errors on 20 other samples\n"
        "\n"
        "adapters, ‖x_j − true‖ / ‖true‖\n"
        "C  fitted by      kind          before   after\n"
        "2  least squares  conv 1×1 3→4  1.2500  0.5000\n"
        "\n"
        "interfaces, ‖z_j − true‖ / ‖true‖, corrected by F^{j-1}; z_1 is exact\n"
        "z  fitted by                     kind   before     after\n"
        "2  distilled, last layer solved  paper     inf  1.20e-04\n"
        "\n"
        "                              before    after\n"
        "output, relative error        2.0000   0.1000\n"
        "same class as the original   10.00 %  95.00 %\n"
        "accuracy (original 92.50 %)  20.00 %  90.00 %\n"
        "\n"
        "usable at this error: accuracy 90.00 % of the original's 92.50 % (output error 0.10)"
    )


def test_without_labels_and_with_long_recipes() -> None:
    one = calibration()
    long = Fit(part="C2", kind="2 × max_pool 3×3/2 → " * 9, method="least squares", seconds=0.0)
    text = str(calibration(accuracy=None, fits=(long, one.fits[1]), held_out=False, fine_tune_steps=7))
    assert "accuracy" not in text.partition("same class")[0]
    assert max(map(len, text.splitlines())) <= 120
    assert "errors on the same" in text
    assert "fine-tuned for 7 steps" in text


def test_json_there_and_back() -> None:
    one = calibration()
    text = one.to_json()
    assert '"interfaces": [\n        0.0,\n        null' in text
    again = Calibration.from_json(text)
    assert again.fits == one.fits
    assert again.stages[1] == one.stages[1]
    assert math.isnan(again.stage("before").interfaces[1])
    assert again.to_json() == text
    assert "2  distilled, last layer solved  paper       –  1.20e-04" in str(again)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "no calibration"),
        ("{", "no calibration"),
        ('{"version": 9}', "of version 9"),
        ('{"version": 3}', "fits"),
        ('{"version": 2}', "reads version 3"),
    ],
)
def test_other_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Calibration.from_json(text)


def test_values_print_their_cosine_and_warnings() -> None:
    stages = [
        Errors(stage=stage, adapters=(0.5,), interfaces=(0.0, 0.5), output=output, cosine=cosine)
        for stage, output, cosine in (("before", 1.2, 0.3), ("after", 1.05, 0.4))
    ]
    report = calibration(stages=tuple(stages), outputs="values", accuracy=None, warnings=("F1 is worse than none",))
    assert Calibration.from_json(report.to_json()) == report
    assert str(report).endswith(
        "output, relative error            1.2000  1.0500\n"
        "cosine with the original's, mean  0.3000  0.4000\n"
        "\n"
        "warning: F1 is worse than none\n"
        "\n"
        "not usable: output error 1.05: worse than answering zero; take more windows (3 at n = 2 "
        "should leave about 0.35), or fine-tune"
    )
    assert report.judge(2.0).usable
    with pytest.raises(CalibrationError, match="tolerance is 0; pass a positive"):
        report.judge(0)


def test_unknown_stage() -> None:
    with pytest.raises(CalibrationError, match="no stage 'later' of this calibration; there are 'before', 'after'"):
        calibration().stage("later")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n": "2"}, "n: Input should be a valid integer; it is '2'"),
        ({"colour": 1}, "colour: Unexpected keyword argument"),
        ({"fits": []}, "fits are of none; n = 2 has 'C2', 'F1'"),
        ({"n": 3}, "its longest window has 2 segments; n = 3"),
        ({"n": 3, "windows": [3]}, "before: 1 errors of adapters; windows of 3 segments have 2"),
        ({"stages": []}, "its stages are ; there are 'before', 'after', 'fine-tuned'"),
        ({"accuracy": 1.5}, "accuracy is 1.5"),
        ({"accuracy": math.nan}, "numbers that are not finite"),
        ({"verdict": {"usable": False, "sentence": "no"}}, "its verdict does not follow"),
        ({"outputs": "values"}, "values have no classes to agree in"),
        ({"samples": -1}, "samples: Input should be greater than or equal to 0; it is -1"),
        ({"n": 2**30, "windows": [2**30] * 3}, "n = 1073741824 has"),
    ],
)
def test_a_changed_report_is_refused(changes: dict[str, object], message: str) -> None:
    values = json.loads(calibration().to_json()) | changes
    with pytest.raises(CalibrationError) as raised:
        Calibration.from_json(json.dumps(values))
    assert message in str(raised.value)


def windows() -> Calibration:
    """Two windows of two segments with corrections, and a sequential one."""
    adapters = [Fit(part=f"C{m}_2", kind="identity", method="left: nothing to fit", seconds=0.0) for m in (1, 2)]
    coarse = [Fit(part=f"F{m}_1", kind="linear", method="left: nothing to fit", seconds=0.0) for m in (1, 2)]
    corrections = [
        Fit(part=f"K{m}_{j}", kind="dense", method="least squares, ridge 0.001", seconds=0.1)
        for m in (1, 2)
        for j in (1, 2)
    ]
    stages = (
        Errors(stage="before", adapters=(0.5, 0.5), interfaces=(0.0, 0.25, 0.3, 0.35, 0.4), output=0.5),
        Errors(stage="after", adapters=(0.5, 0.5), interfaces=(0.0, 0.01, 0.02, 0.03, 0.04), output=0.05),
    )
    choices = [
        CorrectionChoice(
            m=m, kind="dense", rank=0, used=m == 1, errors={"none": 0.25, "dense": 0.05, "low-rank:8": 0.1}
        )
        for m in (1, 2)
    ]
    return calibration(
        windows=(2, 2, 1), coarse="dense", accuracy=None, fits=(*adapters, *coarse, *corrections), stages=stages,
        corrections=tuple(choices), held_out_part="the last 2 of 10 batches", renewed=("g2_1",),
    )  # fmt: skip


def test_windows_print_as_tables_and_come_back() -> None:
    one = windows()
    assert Calibration.from_json(one.to_json()) == one
    assert str(one) == (
        "Net: n = 2, 3 windows, coarse 'dense', fitted to 100 samples, errors on 20 other samples\n"
        "\n"
        "windows, ‖w_m − true‖ / ‖true‖\n"
        "m  segments  corrections                        before   after\n"
        "1  2         dense: least squares, ridge 0.001  0.2500  0.0100\n"
        "2  2         dense: least squares, ridge 0.001  0.3500  0.0300\n"
        "3  1         –                                  0.4000  0.0400\n"
        "\n"
        "output corrections, ‖w_m − true‖ / ‖true‖ on the last 2 of 10 batches, before rounding\n"
        "m    none  low-rank:8   dense   used\n"
        "1  0.2500      0.1000  0.0500  dense\n"
        "2  0.2500      0.1000  0.0500   none\n"
        "\n"
        "                        before   after\n"
        "output, relative error  0.5000  0.0500\n"
        "\n"
        "running statistics of batch norms renewed in g2_1\n"
        "\n"
        "usable at this error: output error 0.05"
    )


def test_corrections_that_were_fitted_to_few_samples_say_so() -> None:
    one = windows()
    used, unused = one.corrections
    few = dataclasses.replace(used, error_fitted=0.02)
    ours = dataclasses.replace(one, corrections=(few, dataclasses.replace(unused, error_fitted=0.001)))
    assert (
        "the corrections are fitted to few samples: those of window 1 leave 0.0500 of the samples held out, and 0.0200 "
        "of those fitted to; with many more it would be about 0.0316\n"
    ) in str(ours)
    assert Calibration.from_json(ours.to_json()) == ours
    assert "calibrate on more samples" not in str(ours)  # it is usable as it is
    assert ours.judge(0.01).sentence.endswith("or calibrate on more samples, or fine-tune")
    enough = dataclasses.replace(one, corrections=(dataclasses.replace(used, error_fitted=0.045), unused))
    assert "few samples" not in str(enough)
    assert "more samples" not in enough.judge(0.01).sentence


def test_corrections_that_cannot_be_are_refused() -> None:
    values = json.loads(windows().to_json())
    for change, message in (
        ({"fits": [*values["fits"], values["fits"][-1] | {"part": "K3_1"}]}, "twice or of no segment"),
        ({"fits": [*values["fits"], values["fits"][-1]]}, "twice or of no segment"),
        ({"corrections": [values["corrections"][0] | {"m": 4}]}, "there is no such window"),
        ({"corrections": [values["corrections"][0] | {"error_fitted": -0.5}]}, "errors below 0"),
        ({"windows": []}, "has 0 segments"),
    ):
        with pytest.raises(CalibrationError, match=message):
            Calibration.from_json(json.dumps(values | change))


def test_names_in_a_report_do_not_act() -> None:
    report = calibration(model="\x1b[2Jnet\r", coarse="\x9b")
    again = Calibration.from_json(report.to_json())
    assert (again.model, again.coarse) == (report.model, report.coarse)
    assert str(again).startswith("\\x1b[2Jnet\\x0d: n = 2")
    assert {"\x1b", "\r", "\x9b"}.isdisjoint(str(again))
