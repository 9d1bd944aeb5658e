"""What a forward asks autograd is answered where the answer always holds, and refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize.errors import CaptureError
from pararealize.tracing.front_end import capture
from tests.tracing.effects import Residual, assert_same


def of_a_frozen_parameter(self: Residual, x: Tensor) -> Tensor:
    return x if self.first.weight.requires_grad else x * 2


def of_a_parameter(self: Residual, x: Tensor) -> Tensor:
    return x * 2 if self.head.weight.requires_grad and self.head.weight.is_leaf else x


def of_a_detached_value(self: Residual, x: Tensor) -> Tensor:
    y = self.head(x).detach()
    return x if y.requires_grad or y.grad_fn is not None or not y.is_leaf else x * 2


def of_a_value_made_under_no_grad(self: Residual, x: Tensor) -> Tensor:
    with torch.no_grad():  # no layer, whose weight, cast here, torch 2.10's autocast would use again below
        y = x * self.head.weight[0]
    return x if y.requires_grad else x * 2


def of_integers(self: Residual, x: Tensor) -> Tensor:
    return x if (x > 0).requires_grad or x.argmax().requires_grad else x * 2


def of_the_frozen_part_alone(self: Residual, x: Tensor) -> Tensor:
    return x if self.first(torch.ones(8)).requires_grad else x * 2


@pytest.mark.parametrize(
    "ask",
    [
        of_a_frozen_parameter,
        of_a_parameter,
        of_a_detached_value,
        of_a_value_made_under_no_grad,
        of_integers,
        of_the_frozen_part_alone,
    ],
    ids=lambda ask: ask.__name__,
)
def test_answers_that_hold_in_every_call(ask: Callable[..., Any]) -> None:
    class Asking(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(ask(self, x)))

    model, x = Asking(), torch.randn(4, 8)
    model.first.requires_grad_(False)
    captured = capture(model, x)
    assert captured.opaque == {}
    assert_same(model, [captured.graph_module], x)


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "requires_grad": lambda x: x.requires_grad,
    "grad_fn": lambda x: x.grad_fn is None,
    "is_leaf": lambda x: x.is_leaf,
    "gradient": lambda x: x.grad,
    "register_hook": lambda x: x.register_hook(lambda gradient: gradient),
    "retain_grad": lambda x: x.retain_grad(),
    "sets requires_grad": lambda x: setattr(x, "requires_grad", True),
    "requires_grad_": lambda x: x.requires_grad_(),
    "detach_": lambda x: x.detach_(),
    "gradients within its forward": lambda x: x.sum().backward(retain_graph=True),
    r"gradients within its forward \(grad": lambda x: torch.autograd.grad(x.sum(), x, retain_graph=True),
}


@pytest.mark.parametrize("word", REFUSED)
def test_the_rest_is_refused_with_its_line_or_kept_in_a_call(word: str) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            if torch.is_grad_enabled() and x.requires_grad:
                REFUSED[word](x)
            return x

    class Whole(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            REFUSED[word](x)
            return self.head(self.body(x))

    with pytest.raises(CaptureError, match=rf"(?s)test_autograd_calls.py:\d+.*{word}"):
        capture(Whole(), torch.randn(2, 8))
    model = nn.Sequential(Small(), *(nn.Linear(8, 8) for _ in range(4)))
    captured = capture(model, torch.randn(2, 8), check=False)
    assert list(captured.opaque) == ["0"]
