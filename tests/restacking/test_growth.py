"""What would make a scheme of large coefficients blow up: an f without a norm at its head, or with noise."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pararealize.analysis.addition import Addition
from pararealize.analysis.flow import flow_of
from pararealize.analysis.residual import find_residuals
from pararealize.models import resnet20
from pararealize.restacking.growth import noise, normalised_first
from pararealize.tracing.front_end import capture


class Net(nn.Module):
    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.stem, self.f = nn.Conv1d(3, 4, 1), f

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.f(x)


class Gated(nn.Module):
    """One of its two ways begins without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.norm(x)) * torch.sigmoid(self.b(x))


class RootMeanSquareNorm(nn.Module):
    """A norm written out."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.pow(2).mean(1, keepdim=True).add(1e-6).rsqrt()


class Split(nn.Module):
    """Its ways begin with a tuple."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([a.sin(), b], 1)


def addition_of(f: nn.Module) -> tuple[Addition, object]:
    captured = capture(Net(f), torch.randn(2, 3, 5))
    (residual,) = find_residuals(flow_of(captured)).blocks
    return residual.additions[0], captured.graph_module.get_submodule


conv = lambda: nn.Conv1d(4, 4, 3, padding=1)  # noqa: E731


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), conv()), True),
        (lambda: nn.Sequential(conv(), nn.ReLU(), nn.GroupNorm(2, 4), conv()), True),
        (lambda: nn.Sequential(RootMeanSquareNorm(), conv()), True),
        (lambda: nn.Sequential(conv(), nn.ReLU(), conv()), False),
        (lambda: nn.Sequential(nn.Sigmoid(), nn.BatchNorm1d(4)), False),
        (Gated, False),
        (lambda: nn.Sequential(Split(), conv()), False),
    ],
)
def test_normalised_first(f, expected: bool) -> None:
    assert normalised_first(*addition_of(f())) is expected


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda: nn.Sequential(conv(), nn.Dropout(0.1)), 1),
        (lambda: nn.Sequential(conv(), nn.Dropout(0.0)), 0),
        (lambda: nn.Sequential(conv(), torchvision.ops.StochasticDepth(0.2, "row")), 1),
        (lambda: nn.Sequential(conv(), torchvision.ops.StochasticDepth(0.0, "row")), 0),
        (lambda: nn.Sequential(conv(), Functional(0.3)), 1),
        (lambda: nn.Sequential(conv(), Functional(0.0)), 0),
        (lambda: nn.Sequential(conv(), Attention(0.3)), 1),
        (lambda: nn.Sequential(conv(), Attention(0.0)), 0),
    ],
)
def test_noise(f, expected: int) -> None:
    assert len(list(noise(*addition_of(f())))) == expected


class Attention(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=self.p if self.training else 0.0)


class Functional(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, training=self.training)


def test_models_that_are_there_have_norms_first() -> None:
    """Post-activation ResNets begin with a convolution, whose factor the norm behind it takes back."""
    makers = (torchvision.models.resnet18, resnet20, torchvision.models.convnext_tiny)
    for model in [make() for make in makers]:
        captured = capture(model, torch.randn(2, 3, 32, 32))
        found = find_residuals(flow_of(captured)).blocks
        assert found
        assert all(normalised_first(r.additions[0], captured.graph_module.get_submodule) for r in found)
