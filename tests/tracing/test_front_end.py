"""Capture reads real forward passes, follows mode and batch size, leaves the model as found, and refuses the rest."""

from __future__ import annotations

import gc

import pytest
import torch
import torchvision
from torch import nn

from pararealize.tracing.front_end import capture
from tests.models import SmallResNet


def test_modules_stay_calls_with_qualified_names() -> None:
    captured = capture(SmallResNet(depth=1), torch.randn(2, 3, 8, 8))
    targets = [node.target for node in captured.graph.nodes if node.op == "call_module"]
    assert targets[:3] == ["conv", "layer1.0.conv1", "layer1.0.bn1"]
    assert targets[-1] == "fc"


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = SmallResNet()
    captured = capture(model, torch.empty(2, 3, 8, 8, device="meta"))
    assert captured.graph_module(torch.empty(5, 3, 8, 8, device="meta")).shape == (5, 3)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_symbolic_tracing_sees_the_same_modules_in_the_same_order(name: str) -> None:
    """An independent reading, where there is one: these forwards have no control flow."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    captured = capture(model, torch.empty(2, 3, 224, 224, device="meta"))
    ours, theirs = (
        [node.target for node in graph.nodes if node.op == "call_module"]
        for graph in (captured.graph, torch.fx.symbolic_trace(model).graph)
    )
    assert ours == theirs


class Doubled(nn.Linear):
    """A layer that nothing else has."""


def test_copies_of_the_model_are_gone_when_it_returns() -> None:
    """And not when the garbage is collected, which a conversion puts off: they are as large as the model."""
    model = nn.Sequential(Doubled(4, 4), nn.ReLU(), Doubled(4, 4))
    gc.collect()
    gc.disable()
    try:
        captured = capture(model, torch.randn(2, 4))
        layers = [each for each in gc.get_objects() if type(each) is Doubled]
    finally:
        gc.enable()
    assert len(layers) == 2
    assert captured.model is model
