"""A call is within a recording by sizes, by the values of what is no tensor, and by kinds of element types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture
from pararealize.errors import ExampleError, GuardError
from pararealize.tracing.conditions import CallConditions


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, ids: Tensor, scale: float = 1.0) -> Tensor:
        return self.linear(x) * scale + ids.unsqueeze(1)


def conditions() -> CallConditions:
    example = {"x": torch.randn(2, 3), "ids": torch.tensor([1, 2]), "scale": 2.0}
    captured = capture(Scaled(), example)
    return CallConditions.of(captured.example.call, captured.guards)


X, IDS = torch.randn(2, 3), torch.tensor([1, 2])


@pytest.mark.parametrize(
    "args, error",
    [
        ((X, IDS, 2.0), None),
        ((X.double(), IDS, 2.0), None),
        ((X[:1], IDS[:1], 2.0), None),
        ((X, IDS, 3.0), ExampleError),
        ((X, IDS, X), ExampleError),
        ((X.long(), IDS, 2.0), GuardError),
        ((X, IDS.byte(), 2.0), GuardError),
        ((X, IDS.float(), 2.0), GuardError),
        ((X[0], IDS, 2.0), GuardError),
        ((None, IDS, 2.0), ExampleError),
        (([1.0], IDS, 2.0), ExampleError),
        ((X,), ExampleError),
        ((X, IDS, 2.0, 1), ExampleError),
    ],
)
def test_what_holds_and_what_does_not(args: tuple[Any, ...], error: type[Exception] | None) -> None:
    rules = conditions()
    assert rules.hold(args, {}) == (error is None)
    if error is None:
        assert set(rules.check(args, {})) == {"x", "ids"}
    else:
        with pytest.raises(error):
            rules.check(args, {})


def test_arguments_by_name() -> None:
    rules = conditions()
    assert rules.hold((X,), {"ids": IDS, "scale": 2.0})
    for args, kwargs in [((X,), {}), ((X, IDS), {"x": X}), ((X, IDS), {"mask": X})]:
        assert not rules.hold(args, kwargs)
