"""What the stages give is put together: in the model's mode, on the segments' devices, and the model is left alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from pararealize import PararealModule, capture, emit, find_blocks, make_plan
from pararealize.compiler import build_modules
from pararealize.errors import ModelError
from tests.models import Perceptron, SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)


def emitted(model: nn.Module, x: torch.Tensor, n: int = 3, **options: Any) -> PararealModule:
    chain = find_blocks(capture(model, x, check=False))
    plan = make_plan(chain, n, coarse="linear")
    adapters, coarse = build_modules(chain, plan, coarse="linear", seed=0)
    return emit(chain, plan, adapters, coarse, **options)


@pytest.mark.parametrize("training", [True, False])
def test_it_has_the_models_mode_and_copies_its_parameters(training: bool) -> None:
    model = SmallResNet().train(training)
    net = emitted(model, IMAGES)
    assert {module.training for module in net.modules()} == {training}
    assert list(net.coarse) == ["F1", "F2"]
    assert list(net.adapters) == ["C2", "C3"]
    for name, parameter in model.named_parameters():
        assert torch.equal(net.get_parameter(name), parameter)
        assert net.get_parameter(name) is not parameter


def test_every_part_is_on_its_segments_device() -> None:
    net = emitted(SmallResNet(), IMAGES, devices=[torch.device(name) for name in ("cpu", "meta", "cpu")])
    homes = {name: net.get_submodule(part.target) for name, part in net.network_parts.items()}
    found = {name: {parameter.device.type for parameter in module.parameters()} for name, module in homes.items()}
    on_meta = {name for name, devices in found.items() if "meta" in devices}
    assert on_meta == {"C2", "g2", "F1"}
    assert all(len(devices) <= 1 for devices in found.values())


def test_what_segments_share_stays_with_the_first() -> None:
    model = Perceptron()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    shared = next(a.weight for a, b in itertools.pairwise(linears) if a.weight.shape == b.weight.shape)
    for linear in linears:
        if linear.weight.shape == shared.shape:
            linear.weight = shared
    net = emitted(model, torch.randn(4, 8), devices=[torch.device(name) for name in ("cpu", "meta", "meta")])
    devices = {p.device.type for p in net.segments["g1"].parameters() if p.shape == shared.shape}
    assert devices == {"cpu"}
    assert next(p for p in net.parameters() if p.shape == shared.shape).device.type == "cpu"


@pytest.mark.parametrize("name", ["adapters", "coarse", "segments"])
def test_names_that_the_result_needs_are_refused(name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(8, 8))
    for i in range(4):
        model.add_module(f"layer{i}", nn.Linear(8, 8))
    with pytest.raises(ModelError, match=rf"has top-level names \['{name}'\], which the result needs for itself"):
        emitted(model, torch.randn(4, 8), n=2)
