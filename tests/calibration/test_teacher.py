"""Teachers: the original's copy, the model that was converted, another one; statistics that were renewed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.calibration.teacher import Teacher
from pararealize.errors import CalibrationError, ModelError
from tests.tuning_networks import TokenNet, padded_batches, token_net

BATCH = padded_batches(1)[0]


def test_the_original_teaches_and_stays_as_it_was() -> None:
    model, net = token_net()
    teacher = Teacher(net, None, renewed=(), mask="auto")
    with torch.no_grad():
        net.head.weight.add_(1)
        output = model(**BATCH)
    values = teacher(BATCH)
    assert torch.equal(values.output.pooled, output.pooled)
    assert teacher.text == "TokenNet, its original weights"
    torch.testing.assert_close(values.ends[-1], output.hidden)


def test_the_converted_model_gives_its_weights() -> None:
    _, net = token_net()
    torch.manual_seed(9)
    other = TokenNet().eval()
    teacher = Teacher(net, other, renewed=("g2_1",), mask="auto")
    with torch.no_grad():
        assert torch.equal(teacher(BATCH).output.pooled, other(**BATCH).pooled)
    assert teacher.has_ends


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.ones(())), nn.Dropout()

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.dropout(ids.float()) * self.scale


def test_another_model_is_called_in_eval_mode() -> None:
    _, net = token_net()
    other = Other()
    teacher = Teacher(net, other, renewed=(), mask="auto")
    values = teacher(BATCH)
    assert torch.equal(values.output, BATCH["ids"].float())
    assert not values.output.requires_grad
    assert other.training
    assert not teacher.has_ends
    with pytest.raises(CalibrationError, match="a Linear, does not take a batch: TypeError"):
        Teacher(net, nn.Linear(2, 2), renewed=(), mask="auto")(BATCH)
    with pytest.raises(ModelError, match="on the meta device"):
        Teacher(net, nn.Linear(2, 2, device="meta"), renewed=(), mask="auto")


def test_statistics_that_nobody_knows_any_more() -> None:
    _, net = token_net()
    with pytest.raises(CalibrationError, match=r"renewed in g2_1, so that .*; pass teacher=model"):
        Teacher(net, None, renewed=("g2_1",), mask="auto")
