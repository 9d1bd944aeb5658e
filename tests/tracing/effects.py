"""A model and its conversion called with the same input: what must be equal about the two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["AMBIENCES", "Residual", "assert_same", "outcome"]

AMBIENCES: dict[str, Callable[[], Any]] = {
    "as it is": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


class Residual(nn.Module):
    """Residual layers with what a test wants done around them: ``forward`` is its to write."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.head = nn.Linear(8, 3)

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def outcome(net: nn.Module, x: Tensor, ambience: str = "as it is", *, needs_gradient: bool = True) -> dict[str, Any]:
    """Output, its type, gradients by the names of the parameters and of the input, and buffers after one call."""
    net.zero_grad()
    x = x.clone().requires_grad_(needs_gradient)
    torch.manual_seed(0)
    with AMBIENCES[ambience]():
        y = net(x)
    if y.requires_grad:
        y.float().square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    buffers = {f"buffer {name}": buffer.clone() for name, buffer in net.named_buffers()}
    return {"y": y.detach(), "x.grad": x.grad, **gradients, **buffers}


def assert_same(model: nn.Module, nets: Sequence[nn.Module], x: Tensor, *, tolerance: float = 1e-6) -> None:
    """Whatever the networks do within other contexts of the caller's, the model does.

    Args:
        model: the model.
        nets: what is to be the same.
        x: an input.
        tolerance: relative to each tensor's norm. Within autocast, gradients of a parameter that is read twice are
            added up in either type, as regions begin and end.
    """
    for ambience in AMBIENCES:
        for needs_gradient in (True, False):
            expected = outcome(model, x, ambience, needs_gradient=needs_gradient)
            for net in nets:
                result = outcome(net, x, ambience, needs_gradient=needs_gradient)
                for name, value in expected.items():
                    same = _same(value, result.get(name), tolerance)
                    assert same, f"{ambience}, {needs_gradient=}: {name} is {result.get(name)}, not {value}"


def _same(a: Tensor | None, b: Tensor | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and bool((a - b).norm() <= tolerance * (1 + a.norm()))
