"""A graph that is not the model is refused, and every refusal names fact, place and remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.errors import CaptureError, ExampleError, ModelError
from pararealize.tracing.front_end import capture
from tests.models import Auxiliary, Branching, MaskedTransformer, SmallResNet


def test_refusals_name_fact_place_and_remedy() -> None:
    with pytest.raises(
        CaptureError, match=r"Branching.*models\.py:\d+ `if x.sum\(\) > 0:`.*values of a tensor.*a module of its own"
    ):
        capture(Branching(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match=r"depends on train\(\)/eval\(\).*aux_logits=False"):
        capture(Auxiliary(), torch.randn(2, 4))
    with pytest.raises(ExampleError, match=r"SmallResNet does not accept.*x \(2, 4\) float32"):
        capture(SmallResNet(), torch.randn(2, 4))
    with pytest.raises(ExampleError, match=r"do not fit SmallResNet.forward\(x.*\).*missing a required argument: 'x'"):
        capture(SmallResNet(), {"y": torch.randn(2, 4)})
    with pytest.raises(ExampleError, match=r"first layer is Embedding; pass example_inputs"):
        capture(MaskedTransformer())
    with pytest.raises(ExampleError, match="is a object; only tensors and plain values"):
        capture(SmallResNet(), ([torch.randn(2, 3, 8, 8), object()],))
    with pytest.raises(ModelError, match="has no parameters"):
        capture(nn.ReLU(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match="leaf_modules names 'layer9'"):
        capture(SmallResNet(), torch.randn(2, 3, 8, 8), leaf_modules=["layer9"])


class ScaledWhileTraining(nn.Module):
    """A block whose forward asks for the grad mode, which no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.layer(x))
        return h * 1.5 if torch.is_grad_enabled() else h


class Shifted(nn.Module):
    """Its two inputs leave no other sizes to try than those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(*(ScaledWhileTraining() for _ in range(3)))

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x + shift))


def test_what_asks_for_the_grad_mode_is_one_call() -> None:
    model, inputs = Shifted(), (torch.randn(3, 3, 6, 7), torch.ones(3, 1, 1, 1))
    captured = capture(model, inputs)
    assert set(captured.opaque) == {f"blocks.{i}" for i in range(3)}
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert torch.equal(captured.graph_module(*inputs), model(*inputs))


class HiddenByNorm(nn.Module):
    """Blocks that ask for the grad mode, each behind a norm that takes their scale out again, nearly."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh(), Scaled()) for _ in range(3))
        )
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(x))


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.5 if torch.is_grad_enabled() else x


def test_what_a_norm_hides_in_single_precision_is_seen_in_double() -> None:
    torch.manual_seed(0)
    model, x = HiddenByNorm(), torch.randn(3, 6)
    captured = capture(model, x)
    assert set(captured.opaque) == {f"blocks.{i}.3" for i in range(3)}
    model.double()
    with torch.no_grad():
        assert torch.equal(captured.graph_module(x.double()), model(x.double()))
