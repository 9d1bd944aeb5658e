"""Two recordings become one graph that follows the mode and the batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize.tracing.front_end import capture
from tests.models import MaskedTransformer, SmallResNet, StochasticDepth


def outputs(model: nn.Module, graph: nn.Module, *inputs: Tensor) -> list[Any]:
    """What model and graph give for one random state."""
    results = []
    for network in (model, graph):
        torch.manual_seed(3)
        results.append(network(*inputs))
    return results


IDS = torch.randint(0, 11, (4, 7))


NETWORKS = {
    "convolutions": (SmallResNet(), torch.randn(4, 3, 8, 8)),
    "functional dropout and a mask": (MaskedTransformer(), IDS),
    "stochastic depth": (nn.Sequential(*(StochasticDepth() for _ in range(3))), torch.randn(4, 6)),
    "lstm": (nn.LSTM(3, 5, batch_first=True), torch.randn(4, 6, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("captured_in_training", [True, False])
def test_the_mode_is_followed_after_capture(name: str, training: bool, captured_in_training: bool) -> None:
    model, x = NETWORKS[name]
    model.train(captured_in_training)
    captured = capture(model, x)
    model.train(training)
    for rows in (x, x[:1] if not training else x[:3], torch.cat([x, x])):
        expected, got = outputs(model, captured.graph_module, rows)
        pairs = zip(*(torch.utils._pytree.tree_leaves(value) for value in (expected, got)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_mode_of_one_submodule_is_followed() -> None:
    model = MaskedTransformer(depth=2)
    captured = capture(model, IDS)
    model.train()
    model.layers[0].eval()
    assert torch.equal(*outputs(model, captured.graph_module, IDS))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(x.shape[0] * 2, -1).sum(1).view(x.shape[0], 2),
        lambda x: x + torch.arange(x.size(0)).view(-1, 1),
        lambda x: F.pad(x, (1, 1)),
        lambda x: x[: x.shape[0] // 1, 1:],
        lambda x: torch.cat([x.new_zeros(x.shape[0], 1), x], 1),
        lambda x: 2.0 - x / (1 + x**2) @ torch.eye(4),
        lambda x: torch.split(x, [1, 3], dim=1)[1] * x.mean(),
        lambda x: x.T.T + x.mT.mT,
        lambda x: torch.einsum("bi,bj->bij", x, x).flatten(1),
        lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    ],
)
def test_functions_and_sizes(function: Any) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.linear(x))

    model = Functional()
    captured = capture(model, torch.randn(2, 4))
    for rows in (1, 2, 5):
        x = torch.randn(rows, 4)
        assert torch.equal(captured.graph_module(x), model(x))
