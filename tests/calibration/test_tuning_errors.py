"""Errors of a fine-tuning are against the teacher that teaches; those of a calibration against the original."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pararealize.calibration.fine_tuning import fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.calibration.tuning_report import FineTuning
from pararealize.train.recipe import Recipe
from tests.tuning_networks import TokenNet, padded_batches, token_net

STILL = Recipe(lr=1e-20, momentum=0, weight_decay=0)


class Wrapped(nn.Module):
    """A model that calls another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.inner(ids, attention_mask)


def test_errors_are_against_the_teacher_that_teaches() -> None:
    """They were against the copy of the network, whose own weights had been fine-tuned."""
    _, net = token_net(end="tensor")
    torch.manual_seed(5)
    other = Wrapped(TokenNet("tensor")).eval()
    given = padded_batches()
    with torch.no_grad():
        pairs = [(net(**batch), other(**batch)) for batch in given[-1:]]
    apart, whole = (torch.stack(some).norm() for some in (tuple(a - b for a, b in pairs), tuple(b for _, b in pairs)))
    calibration = calibrate(net, given, steps=0)
    tuning = fine_tune(token_net(end="tensor")[1], given, calibration, steps=1, recipe=STILL, teacher=other)
    assert tuning.before.output == pytest.approx(float(apart / whole), rel=1e-5)
    assert tuning.before.output == pytest.approx(math.sqrt(tuning.loss_before), rel=1e-5)
    assert tuning.reference == "teacher"
    assert all(map(math.isfinite, tuning.before.interfaces))
    assert not tuning.calibration.warnings, "its stages are all against the original"
    before, after = (tuning.calibration.stage(name).output for name in ("before", "fine-tuned"))
    assert after == pytest.approx(before, rel=1e-4)
    assert fine_tune(net, given, steps=6, lr=1e-3).best
    again = fine_tune(net, given, calibration, steps=1, recipe=STILL, teacher=other)
    assert again.before.output == pytest.approx(math.sqrt(again.loss_before), rel=1e-5)
    assert all(map(math.isnan, (*again.after.adapters, *again.after.interfaces)))
    assert again.calibration.stage("fine-tuned").output == pytest.approx(again.after.output, rel=0.5)
    assert FineTuning.from_json(again.to_json()).verdict == again.verdict
    (warning,) = again.calibration.warnings
    assert warning.startswith("fine-tuned, the output is compared with that of the teacher (Wrapped, given)")
    assert "nan" not in str(again.calibration)
