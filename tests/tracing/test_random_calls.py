"""Calls that draw random numbers are told from those that do not, and found where several pieces have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pararealize.tracing.front_end import capture
from pararealize.tracing.random_calls import drawn_repeatedly


@pytest.mark.parametrize(
    "module, drawn",
    [
        (nn.Dropout(0.5), True),
        (nn.Sequential(nn.Linear(4, 4), nn.RReLU()), True),
        (nn.Linear(4, 4), False),
    ],
)
def test_numbers_that_several_pieces_would_draw(module: nn.Module, drawn: bool) -> None:
    captured = capture(nn.Sequential(nn.Linear(4, 4), module), torch.randn(2, 4))
    graphs = {"g1": captured.graph, "g2": captured.graph}
    names = drawn_repeatedly(graphs, captured.graph_module.get_submodule)
    assert len(names) == drawn
    assert all(name.endswith(" in g1, g2") for name in names)
    assert drawn_repeatedly({"g1": captured.graph}, captured.graph_module.get_submodule) == []


@pytest.mark.parametrize("draw", ["rand", "rand_like", "randn", "bernoulli_", "normal_", "dropout", "multinomial"])
def test_numbers_that_functions_and_methods_draw(draw: str) -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if draw in ("rand", "randn"):
                return x + getattr(torch, draw)(4)
            if draw == "multinomial":
                return x + torch.softmax(x, 1).multinomial(1)
            if draw.endswith("_"):
                return x + getattr(torch.zeros(4), draw)()
            return x + (torch.rand_like(x) if draw == "rand_like" else nn.functional.dropout(x, 0.5))

    captured = capture(nn.Sequential(nn.Linear(4, 4), Drawing()), torch.randn(2, 4))
    names = drawn_repeatedly({"g1": captured.graph, "g2": captured.graph}, captured.graph_module.get_submodule)
    assert len(names) == 1
