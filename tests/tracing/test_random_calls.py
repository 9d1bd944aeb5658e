"""Calls that draw random numbers are told from those that do not, and found where several pieces have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pararealize.tracing.front_end import capture
from pararealize.tracing.random_calls import drawn_repeatedly, draws


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


def attention(x: Tensor, *, training: bool, p: float = 0.5) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=p if training else 0.0)


def attention_of_heads(x: Tensor, *, training: bool, p: float = 0.5) -> Tensor:
    weight, bias = torch.eye(4), torch.zeros(4)
    settings = (4, 2, weight.repeat(3, 1), bias.repeat(3), None, None, False, p, weight, bias)
    return F.multi_head_attention_forward(x, x, x, *settings, training=training, need_weights=False)[0]


def pooled(x: Tensor, *, training: bool) -> Tensor:
    return F.fractional_max_pool2d(x.repeat(1, 2, 2)[None], 2, output_size=x.shape[1:])[0]


@pytest.mark.parametrize(
    "f, in_train_mode, in_eval_mode",
    [
        (attention, True, False),
        (lambda x, training: attention(x, training=training, p=0.0), False, False),
        (lambda x, training: attention(x, training=True), True, True),
        (lambda x, training: F.scaled_dot_product_attention(x, x, x), False, False),
        (attention_of_heads, True, False),
        (lambda x, training: attention_of_heads(x, training=training, p=0.0), False, False),
        (pooled, True, True),
        (lambda x, training: x * torch.binomial(torch.ones_like(x), torch.full_like(x, 0.5)), True, True),
        (lambda x, training: torch._standard_gamma(torch.ones_like(x)), True, True),
        (lambda x, training: F.dropout(x, 0.5, training), True, False),
        (lambda x, training: torch.dropout(x, 0.5, training), True, False),
        (lambda x, training: F.dropout(x, 0.5, not training), False, True),
        (lambda x, training: F.dropout1d(x, 0.5, training=True), True, True),
        (lambda x, training: F.dropout(x, 0.0), False, False),
        (lambda x, training: F.rrelu(x, training=training), True, False),
        (lambda x, training: torch.relu(x), False, False),
    ],
)
def test_modes_in_which_a_function_draws(f: Callable[..., Tensor], in_train_mode: bool, in_eval_mode: bool) -> None:
    """As torch's generator tells."""

    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return f(x, training=self.training)

    model, x = nn.Sequential(nn.Linear(4, 4), Drawing()), torch.randn(2, 3, 4)
    graph = capture(model, x).graph
    for training, drawn in ((True, in_train_mode), (False, in_eval_mode)):
        before = torch.get_rng_state()
        model.train(training)(x)
        assert torch.equal(before, torch.get_rng_state()) is not drawn
        assert any(draws(node, model.get_submodule, training=training) for node in graph.nodes) is drawn
    assert any(draws(node, model.get_submodule) for node in graph.nodes) is (in_train_mode or in_eval_mode)


@pytest.mark.parametrize(
    "module, in_train_mode, in_eval_mode",
    [
        (nn.Dropout(0.5), True, False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True, False),
        (nn.MultiheadAttention(4, 2), False, False),
        (nn.FractionalMaxPool2d(2, output_size=4), True, True),
    ],
)
def test_modes_in_which_a_module_draws(module: nn.Module, in_train_mode: bool, in_eval_mode: bool) -> None:
    node = fx.Graph().call_module("m")
    for training, drawn in ((True, in_train_mode), (False, in_eval_mode), (None, in_train_mode or in_eval_mode)):
        assert draws(node, {"m": module}.__getitem__, training=training) is drawn
