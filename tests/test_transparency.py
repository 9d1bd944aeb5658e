"""A parareal module works with the rest of PyTorch: compile, export, autocast, optimisers, functional calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pararealize import PararealModule, Plan, pararealize
from tests.models import SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)


@pytest.fixture
def net() -> PararealModule:
    return pararealize(SmallResNet(), n=3, example_inputs=IMAGES)


def gradients(net: torch.nn.Module, run: object, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    run(x).square().sum().backward()  # type: ignore[operator]
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_compile(net: PararealModule) -> None:
    net.eval()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(IMAGES), net(IMAGES), atol=1e-6)
    pairs = zip(gradients(net, compiled, IMAGES), gradients(net, net, IMAGES), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("strict", [False, True])
def test_export(net: PararealModule, strict: bool) -> None:
    net.eval()
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(net, (IMAGES,), dynamic_shapes=(batch,), strict=strict)
    x = torch.randn(7, 3, 8, 8)
    assert torch.allclose(program.module()(x), net(x), atol=1e-6)
    assert set(program.state_dict) == set(net.state_dict())


def test_autocast(net: PararealModule) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(IMAGES)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_optimisers_lower_the_loss(net: PararealModule, make: type[torch.optim.Optimizer]) -> None:
    target = torch.tensor([0, 1, 2, 0])
    optimiser = make(net.parameters(), lr=0.05)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(IMAGES), target)
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(8):
        optimiser.step(closure)
    assert closure().item() < 0.7 * first


def test_weights_and_plan_make_the_network_again(net: PararealModule, tmp_path: Path) -> None:
    net.eval()
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    plan = Plan.from_json(net.plan.to_json())
    assert plan == net.plan
    again = pararealize(SmallResNet(), plan=plan, example_inputs=IMAGES)
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    again.eval()
    assert torch.equal(again(IMAGES), net(IMAGES))


def test_functional_calls(net: PararealModule) -> None:
    net.eval()
    doubled = {name: 2 * p for name, p in net.named_parameters()}
    output = torch.func.functional_call(net, doubled, (IMAGES,))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert torch.allclose(output, net(IMAGES), rtol=1e-5)


def test_no_shape_is_frozen(net: PararealModule) -> None:
    net.eval()
    for shape in ((1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 16, 12)):
        assert net(torch.randn(shape)).shape == (shape[0], 3)


@pytest.mark.parametrize("coarse", ["paper", "depthwise", "bottleneck", "linear", "block", "exact"])
def test_a_model_that_casts_within_its_forward_keeps_its_types_after_casts(coarse: str) -> None:
    """Adapters and coarse blocks had weights of the type that they were cast to, and inputs of the region's."""

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)
            self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.stem(x)
                for block in self.blocks:
                    x = x + torch.relu(block(x))
                return self.head(x.mean((2, 3)))

    model, x = Casting(), torch.randn(2, 3, 6, 6)
    net = pararealize(model, n=3, example_inputs=x, coarse=coarse)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        expected, result = model.to(dtype)(x.to(dtype)), net.to(dtype)(x.to(dtype))
        assert result.dtype == expected.dtype
        result.float().sum().backward()
        net.zero_grad()
