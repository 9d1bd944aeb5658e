"""Whatever draws random numbers draws them from the source, the same each time, and torch's own generator stays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.utils.checkpoint import checkpoint

from pararealize.random_source import RandomSource

X = torch.rand(4, 6, 8)
ATTENTION = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

CALLS: dict[str, Callable[[], Tensor]] = {
    "dropout": lambda: F.dropout(X, 0.5),
    "dropout in place": lambda: F.dropout(X * 1, 0.5, inplace=True),
    "dropout2d": lambda: F.dropout2d(X[None], 0.5),
    "alpha dropout": lambda: F.alpha_dropout(X, 0.5, training=True),
    "rrelu": lambda: F.rrelu(X - 0.5, training=True),
    "attention": lambda: ATTENTION(X, X, X)[0],
    "scaled dot product": lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=0.5),
    "lstm": lambda: nn.LSTM(8, 8, num_layers=2, dropout=0.5)(X)[0],
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(3, dtype=torch.float64),
    "randint": lambda: torch.randint(100, (5,)),
    "randint from": lambda: torch.randint(3, 100, (5,)),
    "randperm": lambda: torch.randperm(50),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X, dtype=torch.float64),
    "randint_like": lambda: torch.randint_like(X, 100),
    "randint_like from": lambda: torch.randint_like(X, 3, 100),
    "bernoulli": lambda: torch.bernoulli(X),
    "normal": lambda: torch.normal(X, X),
    "normal of a number": lambda: torch.normal(0.0, 1.0, (3,)),
    "multinomial": lambda: torch.multinomial(X[0], 2),
    "poisson": lambda: torch.poisson(X * 9),
    "uniform_": lambda: torch.empty(3).uniform_(),
    "exponential_": lambda: torch.empty(3).exponential_(),
    "gumbel": lambda: F.gumbel_softmax(X),
    "initialisation": lambda: nn.Linear(3, 3).weight,
    "checkpoint": lambda: checkpoint(lambda x: F.dropout(x, 0.5), X.clone().requires_grad_(), use_reentrant=False),
}


@pytest.mark.parametrize("dispatcher", [contextlib.nullcontext, enable_python_dispatcher])
@pytest.mark.parametrize("name", CALLS)
def test_draws_come_from_the_source(
    name: str, dispatcher: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """With torch's Python dispatcher, as under a recording's fake mode, dropout is a call that takes no generator."""
    before = torch.get_rng_state()
    torch.manual_seed(3)
    expected, results = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        with dispatcher(), RandomSource(seed) as source:
            results.append(CALLS[name]().detach())
        assert source.draws
    assert torch.equal(torch.get_rng_state(), expected), "nothing is drawn from torch's own generator"
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    torch.set_rng_state(before)


def test_a_generator_of_the_caller_stays() -> None:
    with RandomSource(0) as source:
        result = torch.rand(3, generator=torch.Generator().manual_seed(7))
    assert source.draws == 0
    assert torch.equal(result, torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_values_have_the_right_distribution() -> None:
    """The rewritten calls are those that were asked for."""
    with RandomSource(0):
        assert abs(float(torch.rand_like(torch.empty(10_000)).mean()) - 0.5) < 0.02
        assert abs(float(torch.randn_like(torch.empty(10_000)).std()) - 1) < 0.05
        values = torch.randint_like(torch.empty(10_000), 3, 7)
        assert values.unique().tolist() == [3.0, 4.0, 5.0, 6.0]
        assert torch.randint_like(torch.empty(1000), 2).unique().tolist() == [0.0, 1.0]


def test_fused_dropout_keeps_the_mean_and_passes_gradients_where_it_kept() -> None:
    x = torch.ones(1000, requires_grad=True)
    with enable_python_dispatcher(), RandomSource(0):
        y = F.dropout(x, 0.25)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert set(y.detach().unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 600 < int(y.count_nonzero()) < 900
