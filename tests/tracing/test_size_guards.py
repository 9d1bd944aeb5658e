"""What two recordings decided on sizes becomes the guards of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize.tracing.front_end import capture
from pararealize.tracing.size_guards import contradict
from pararealize.tracing.sizes import Sizes


class Decides(nn.Module):
    """A linear layer, then what the sizes of its values decide."""

    def __init__(self, rule: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.rule = nn.Linear(4, 4), rule

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self.linear(x))


@pytest.mark.parametrize(
    "rule, guards",
    [
        (lambda x: x * 2 if x.shape[0] > 4 else x, ["x.size(0) <= 4"]),
        (lambda x: x * min(x.shape[0], 4), ["x.size(0) <= 4"]),
        (lambda x: x if x.shape[1] % 2 == 0 else -x, ["x.size(1) % 2 == 0"]),
        (lambda x: x * {12: 3.0}.get(int(x.shape[1]), 1.0), ["x.size(1) == 12"]),
        (lambda x: sum(x[:, i] for i in range(x.shape[1])), ["x.size(1) == 12"]),
        (lambda x: x / int(x.shape[0]), []),
        (lambda x: x * (1.0 / int(x.shape[0])), ["x.size(0) == 2"]),
        (lambda x: x.reshape(int(x.shape[0]), -1), []),
        (lambda x: x if x.shape[0] != 1 else -x, ["x.size(0) != 1"]),
        (lambda x: x if x.shape[0] > 0 else -x, ["x.size(0) > 0", "x.size(1) > 0"]),
    ],
)
def test_guards(rule: Callable[[Tensor], Any], guards: list[str]) -> None:
    model = Decides(rule)
    captured = capture(model, torch.randn(2, 12, 4))
    conditions = [str(guard.condition) for guard in captured.guards]
    assert [each for each in conditions if each not in ("x.dim() == 3", "x.size(2) == 4", "x.size(2) > 0")] == guards
    for shape in ((2, 12, 4), (1, 12, 4), (5, 12, 4), (4, 7, 4), (3, 14, 4)):
        x = torch.randn(shape)
        if not captured.guards.broken({"x": x}):
            torch.testing.assert_close(captured.graph_module(x), model(x))


class Skips(nn.Module):
    """Another network in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1 if self.training else x


def test_conditions_are_those_of_the_recording_that_is_kept() -> None:
    """A first one is given up, since one part has to be a call; what its calls had decided was asked no more."""

    class Sum(nn.Module):
        def __init__(self, middle: nn.Module) -> None:
            super().__init__()
            self.linear, self.middle = nn.Linear(6, 6), middle

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.middle((self.linear(x) + y) @ y.mT)

    conditions = []
    for middle in (nn.Identity(), Skips()):
        captured = capture(Sum(middle), (torch.randn(2, 5, 6), torch.randn(2, 5, 6)))
        conditions.append([guard.condition for guard in captured.guards])
    assert conditions[0] == conditions[1]
    assert "x.size(1) == y.size(1)" in conditions[0]


def test_a_size_that_python_keys_with_is_fixed_and_the_batch_is_not() -> None:
    tables = {12: 3.0, 13: 4.0}
    captured = capture(Decides(lambda x: x * tables[x.shape[1]]), torch.randn(2, 12, 4))
    assert "x.size(1) == 12" in [guard.condition for guard in captured.guards]
    assert not captured.guards.broken({"x": torch.randn(5, 12, 4)})


def test_recordings_contradict_where_one_would_have_answered_otherwise() -> None:
    first, second = Sizes(), Sizes()
    for sizes, size in ((first, 4), (second, 5)):
        sizes.inner = None
        assert (sizes.symbol("x", 0, size, batch=True) > 4) == (size > 4)
    assert contradict(first, second)
    assert not contradict(first, first)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_rules_are_right_within_their_guards(data: st.DataObject) -> None:
    """Against the model itself, at random sizes."""
    number, axis = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 1))
    kind = data.draw(st.sampled_from(["less", "mod", "slice", "min", "view", "mean", "pad"]))
    rules: dict[str, Callable[[Tensor], Any]] = {
        "less": lambda x: x if x.shape[axis] < number else x.flip(1),
        "mod": lambda x: x if x.shape[axis] % number == 0 else -x,
        "slice": lambda x: x[:, :number],
        "min": lambda x: x * min(x.shape[axis], number),
        "view": lambda x: x.reshape(x.shape[0], -1, 2).sum(1) / (x.shape[1] + number),
        "mean": lambda x: x.sum(axis) / (x.shape[axis] * number - x.shape[1 - axis] // 2),
        "pad": lambda x: nn.functional.pad(x, (0, 0, 0, x.shape[1] % number)),
    }
    model = Decides(rules[kind])
    captured = capture(model, torch.randn(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8)), 4))
    for _ in range(4):
        x = torch.randn(data.draw(st.integers(1, 10)), data.draw(st.integers(1, 12)), 4)
        if not captured.guards.broken({"x": x}):
            torch.testing.assert_close(captured.graph_module(x), model(x))
