"""Example inputs are bound to the forward, or inferred from what the model says of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pararealize.tracing.example import Example
from pararealize.tracing.front_end import capture
from tests.models import SmallResNet


def test_inference_of_examples() -> None:
    assert capture(SmallResNet()).example.tensors["x"].shape == (2, 3, 224, 224)
    assert capture(nn.Sequential(nn.Linear(5, 2))).example.batch == 2


@pytest.mark.parametrize(
    "first, attributes, shape",
    [
        (nn.Conv2d(5, 2, 3), {}, (2, 5, 224, 224)),
        (nn.Conv2d(1, 2, 3), {"default_cfg": {"input_size": (1, 28, 28)}}, (2, 1, 28, 28)),
        (nn.Conv2d(3, 2, 3), {"image_size": 40}, (2, 3, 40, 40)),
        (nn.Conv1d(3, 2, 3), {}, (2, 3, 1024)),
        (nn.Conv3d(3, 2, 3), {"input_size": (4, 8, 8)}, (2, 3, 4, 8, 8)),
        (nn.Linear(7, 2), {}, (2, 7)),
    ],
)
def test_what_is_inferred(first: nn.Module, attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = nn.Sequential(first)
    for name, value in attributes.items():
        setattr(model, name, value)
    assert Example.of(model).values["input"].shape == shape


def test_rows_are_taken_round_and_round() -> None:
    example = Example.of(nn.Sequential(nn.Linear(1, 1)), torch.tensor([[1.0], [2.0]]))
    assert example.resized(5).values["input"].flatten().tolist() == [1, 2, 1, 2, 1]
    assert example.resized(1).batch == 1
