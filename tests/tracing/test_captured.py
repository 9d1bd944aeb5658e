"""A capture prints what it is of, and reads as the graph that it holds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pararealize.tracing.front_end import capture
from tests.models import Branching


def test_a_capture_prints_its_inputs_its_size_and_what_could_not_be_read() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), Branching())
    captured = capture(model, torch.randn(2, 4), leaf_modules=["2"])
    assert str(captured).splitlines() == [
        "Sequential(input (2, 4) float32): 5 nodes, 3 module calls",
        "  opaque 2: asked for",
    ]


def test_a_capture_is_plain_data_over_the_model_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    captured = capture(model, torch.randn(3, 4))
    assert captured.model is model
    assert captured.graph is captured.graph_module.graph
    assert (captured.batch, captured.fixed_batch) == (3, False)
    assert captured.example.batch == 3
    assert captured.constants == {}
    values = [node.meta["val"] for node in captured.graph.nodes if node.op == "call_module"]
    assert [tuple(value.shape) for value in values] == [(3, 8), (3, 8)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        captured.batch = 4  # type: ignore[misc]
