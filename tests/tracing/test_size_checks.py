"""Of what calls decide on sizes, only what decides the sizes of their results becomes a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize.tracing.front_end import capture


class Calls(nn.Module):
    """A linear layer, then a function of sequences."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(x))


X = torch.randn(2, 12, 4)


@pytest.mark.parametrize(
    "function, conditions",
    [
        (lambda x: x.relu() + x, []),
        (lambda x: x.flatten(1).view(x.shape[0], -1, 4), []),
        (lambda x: F.scaled_dot_product_attention(x, x, x), []),
        (lambda x: F.interpolate(x, size=x.shape[-1]), []),
        (lambda x: torch.cat([x, x[:, :1]], 1), []),
        (lambda x: x.mean((1, 2)) / (x.shape[1] * x.shape[2]), []),
        (lambda x: x[:, :100], ["x.size(1) <= 100"]),
        (lambda x: x[:, :7], ["x.size(1) >= 7"]),
        (lambda x: x.view(x.shape[0], -1, 3, 4), ["x.size(1) % 3 == 0"]),
        (lambda x: x.unbind(1)[0], ["x.size(1) == 12"]),
        (lambda x: x + torch.ones(12, 1), ["x.size(1) == 12"]),
    ],
)
def test_conditions(function: Callable[..., Any], conditions: list[str]) -> None:
    """By what the conditions allow: the graph is right there, which the model itself says."""
    model = Calls(function)
    captured = capture(model, X)
    found = [guard.condition for guard in captured.guards if not guard.condition.startswith(("x.dim()", "x.size(2)"))]
    assert found == conditions
    for length in (1, 2, 3, 6, 7, 12, 13, 100, 101):
        x = torch.randn(3, length, 4)
        if not captured.guards.broken({"x": x}):
            expected, result = model(x), captured.graph_module(x)
            assert expected.shape == result.shape
            torch.testing.assert_close(result, expected)


def test_squeezing_keeps_sizes_of_one_away() -> None:
    captured = capture(Calls(lambda x: x.squeeze(1) if x.ndim == 3 else x), X)
    assert [guard.condition for guard in captured.guards.broken({"x": torch.randn(2, 1, 4)})] == ["x.size(1) != 1"]
    assert not captured.guards.broken({"x": torch.randn(1, 5, 4)})


def test_a_call_that_takes_plain_sizes_only_is_learnt_from_several() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x[:, : 3 if x.sum() > 1e9 else 2]], 1)

    model = nn.Sequential(nn.Linear(4, 4), Opaque(), nn.Linear(4, 4))
    captured = capture(model, X)
    assert list(captured.opaque) == ["1"]
    for shape in ((2, 12, 4), (1, 5, 4), (3, 20, 4)):
        assert not captured.guards.broken({"input": torch.randn(shape)})
    sizes = next(node.meta["sizes"] for node in captured.graph.nodes if node.target == "1")
    assert str(sizes[1]).endswith("+ 2")


def test_one_sample_is_enough_for_a_norm_that_does_not_train() -> None:
    """In train mode it wants more than one value a channel, and says so itself; that is no guard in eval mode."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    captured = capture(model, torch.randn(4, 3))
    model.eval()
    x = torch.randn(1, 3)
    assert not captured.guards.broken({"input": x})
    assert torch.equal(captured.graph_module(x), model(x))
