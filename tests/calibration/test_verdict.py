"""Verdicts: usable or not by error, classes or accuracy, and which cut should do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.calibration.rows import Errors
from pararealize.calibration.verdict import judge


def errors(output: float, agreement: float | None = None, accuracy: float | None = None) -> Errors:
    return Errors(stage="after", adapters=(), interfaces=(), output=output, agreement=agreement, accuracy=accuracy)


@pytest.mark.parametrize(
    "stage, more, sentence",
    [
        (errors(0.01), {}, "usable at this error: output error 0.01"),
        (errors(0.3), {},
         "not usable: output error 0.30, above 0.25; take more windows (about 2 at n = 4), or fine-tune"),
        (errors(0.3), {"tolerance": 0.3}, "usable at this error: output error 0.30"),
        (errors(0.01), {"held_out": False}, "usable at this error: output error 0.01, of the samples fitted to"),
        (errors(1.05), {"fine_tuned": True},
         "not usable: output error 1.05: worse than answering zero; take more windows (about 5 at n = 4)"),
        (errors(0.4, 0.96), {}, "usable at this error: the same class as the original in 96.00 % (output error 0.40)"),
        (errors(0.4, 0.6), {"coarse": "linear"},
         ("not usable: the same class as the original in 60.00 % (output error 0.40); take more windows "
          "(about 2 at n = 4), or coarse='low-rank', whose corrections have a closed form, or fine-tune")),
        (errors(0.4, 0.9, 0.895), {"accuracy": 0.9},
         "usable at this error: accuracy 89.50 % of the original's 90.00 % (output error 0.40)"),
        (errors(0.4, 0.9, 0.895), {"accuracy": 0.9, "reference": "teacher"},
         "usable at this error: accuracy 89.50 % of the teacher's 90.00 % (output error 0.40)"),
        (errors(0.2), {"before": errors(0.1)},
         "usable at this error: output error 0.20, more than 0.10 before it was fitted"),
        (errors(0.2), {"before": errors(0.3)}, "usable at this error: output error 0.20"),
        (errors(0.3), {"before": errors(0.2)},
         ("not usable: output error 0.30, above 0.25, more than 0.20 before it was fitted; take more windows (about 2 "
          "at n = 4), or calibrate on more samples, or convert the model anew and do without, or fine-tune")),
        (errors(math.nan), {}, "not usable: the output is not finite, or the original's is zero"),
    ],
)  # fmt: skip
def test_sentences(stage: Errors, more: dict[str, Any], sentence: str) -> None:
    verdict = judge(stage, windows=(4,), blocks=24, **more)
    assert (str(verdict), verdict.usable) == (sentence, sentence.startswith("usable"))


def test_a_smaller_n_or_fewer_parallel_blocks_where_windows_cannot_be_shorter() -> None:
    assert "take n = 3 (with about 4 windows)" in str(judge(errors(1.1), windows=(4,), blocks=12))
    assert "take more windows (3 at n = 2 should leave about 0.67)" in str(judge(errors(2), windows=(2,), blocks=6))
    assert "leave blocks that matter sequential" in str(judge(errors(0.5), windows=(2, 2), blocks=4))
    assert str(judge(errors(0.5), windows=(1,), blocks=0, fine_tuned=True)).endswith("above 0.25")


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(2, 6), st.integers(1, 5), st.integers(1, 40))
def test_the_advice_can_be_followed(error: float, n: int, windows: int, blocks: int) -> None:
    """As many windows as are advised have blocks for all segments."""
    verdict = judge(errors(error), windows=(n,) * windows, blocks=blocks * n * windows)
    assert verdict.usable == (error <= 0.25)
    if "(about " in verdict.sentence:
        advised = int(verdict.sentence.partition("(about ")[2].split()[0])
        assert windows < advised <= blocks * windows
