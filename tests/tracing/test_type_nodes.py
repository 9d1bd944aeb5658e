"""A captured network follows ``.to(dtype)`` as its model does, or says that it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize import pararealize
from pararealize.errors import GuardError
from pararealize.tracing.front_end import capture
from pararealize.tracing.type_nodes import dtype_of, finfo_of, limit_of, of_type, other_type
from tests.models import LanguageModel

TYPES = (torch.float32, torch.bfloat16, torch.float64)


class Rooted(nn.Module):
    """Llama's norm: computed in 32 bits, whatever comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        y = x.to(torch.float32)
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype)


class Attention(nn.Module):
    """Causal attention with a mask in the type of the queries, and a softmax in 32 bits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Rooted(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=q.dtype)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = q @ k.transpose(1, 2) + mask.masked_fill(future, torch.finfo(q.dtype).min)
        return x + F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


class Decoder(nn.Module):
    """Ids to scores."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.layers = nn.ModuleList(Attention(width) for _ in range(4))
        self.head = nn.Linear(width, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("n", [1, 3])
def test_a_decoder_follows(n: int) -> None:
    torch.manual_seed(0)
    model, ids = Decoder().eval(), torch.randint(0, 11, (2, 6))
    net = pararealize(model, n=n, coarse="linear", example_inputs=ids).eval()
    for dtype in TYPES:
        expected, result = copy.deepcopy(model).to(dtype), copy.deepcopy(net).to(dtype)
        for rows in (ids, ids[:1, :5]):
            assert torch.equal(result.iterate(rows, n - 1), expected(rows))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.iterate(ids, n - 1), model(ids))


@pytest.mark.parametrize("n", [1, 4])
def test_a_table_in_the_type_of_the_first_values_follows(n: int) -> None:
    """It is context, computed from the ids, which have another type."""
    torch.manual_seed(0)
    model, ids = LanguageModel().eval(), torch.randint(0, 11, (4, 5))
    net = pararealize(model, n=n, coarse="linear", example_inputs=ids).eval()
    for dtype in TYPES:
        expected, result = copy.deepcopy(model).to(dtype), copy.deepcopy(net).to(dtype)
        assert torch.equal(result.iterate(ids, n - 1)["logits"], expected(ids)["logits"])


class Function(nn.Module):
    """A linear layer, then a function of it and of the input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x), x)


class WithinAutocast(Function):
    """Autocast gives its values a type that is none of the model's; of double precision it makes none."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize("kind", [Function, WithinAutocast])
@pytest.mark.parametrize(
    "function",
    [
        lambda y, x: torch.zeros(y.shape, dtype=y.dtype) + y,
        lambda y, x: y.float().exp().type_as(x),
        lambda y, x: y.masked_fill(y > 0, torch.finfo(y.dtype).max),
        lambda y, x: y.double().to(x.dtype) * torch.finfo(x.dtype).eps,
        lambda y, x: F.softmax(y, -1, dtype=torch.float32).to(y.dtype) + torch.arange(4, dtype=x.dtype),
        lambda y, x: y.to(torch.float32).mean(-1, dtype=y.dtype),
        lambda y, x: x.to(y.dtype) + y.float().exp().type_as(y),
    ],
)
def test_types_and_their_numbers(function: Any, kind: type[Function]) -> None:
    model = kind(function)
    captured = capture(model, torch.randn(2, 4))
    assert not any(".dtype" in guard.condition for guard in captured.guards)
    for dtype in TYPES:
        x = torch.randn(3, 4, dtype=dtype)
        model.to(dtype)
        expected, result = model(x), captured.graph_module(x)
        assert expected.dtype == result.dtype
        assert torch.equal(expected, result)


def test_a_type_that_decides_is_a_guard() -> None:
    captured = capture(Function(lambda y, x: y * 2 if x.dtype == torch.bfloat16 else y), torch.randn(2, 4))
    broken = captured.guards.broken({"x": torch.randn(2, 4, dtype=torch.bfloat16)})
    assert [guard.condition for guard in broken] == ["x.dtype == torch.float32"]


def test_a_type_that_decides_is_checked_where_no_input_tells_it() -> None:
    class Deciding(Decoder):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            return self.head(x * 2 if x.dtype == torch.bfloat16 else x)

    model, ids = Deciding().eval(), torch.randint(0, 11, (2, 6))
    captured = capture(model, ids)
    assert torch.equal(captured.graph_module(ids), model(ids))
    model.to(torch.bfloat16)
    with pytest.raises(GuardError, match=r"recorded in torch\.float32"):
        captured.graph_module(ids)


def test_numbers_of_types() -> None:
    x = torch.zeros(2, dtype=torch.bfloat16)
    assert dtype_of(x) is torch.bfloat16
    assert finfo_of(x, "min") == torch.finfo(torch.bfloat16).min
    a, b = torch.float32, torch.bfloat16
    assert limit_of(torch.finfo(a).eps, a, torch.finfo(b).eps, b) == "eps"
    assert limit_of(0.1, a, 0.2, b) is None
    assert other_type({torch.bfloat16}) is torch.float32
    assert of_type(x, torch.bfloat16) is x
