"""What a module chose by its training flag follows that flag, whichever module it is used in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize.tracing.front_end import capture
from pararealize.tracing.mode_flag import ModeFlag, without_flags


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, value: Any) -> Tensor:
        if isinstance(value, ModeFlag | bool):
            return F.dropout(self.linear(x), 0.5, value)
        return F.dropout(self.linear(x), 0.1, self.training) * value


class Parent(nn.Module):
    def __init__(self, choose: Callable[[Any], Any]) -> None:
        super().__init__()
        self.child, self.choose = Child(), choose

    def forward(self, x: Tensor) -> Tensor:
        return x + self.child(x, self.choose(self.training))


CHOICES: dict[str, Callable[[Any], Any]] = {
    "the flag itself": lambda flag: flag,
    "a number": lambda flag: 0.5 if flag else 2.0,
    "the flag as a number": lambda flag: 1 + flag,
    "its opposite": lambda flag: not flag,
    "compared": lambda flag: flag == True,  # noqa: E712
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_parents_flag_is_followed_in_its_child(choice: str) -> None:
    model = nn.Sequential(*(Parent(CHOICES[choice]) for _ in range(3)))
    x = torch.randn(4, 8)
    captured = capture(model, x)
    if choice != "the flag as a number":  # an integer that differs may be a size: then its module is one call
        assert captured.opaque == {}
    for flags in range(2**4):
        for i, module in enumerate((model[0], model[0].child, model[2], model[2].child)):
            module.training = bool(flags >> i & 1)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        assert torch.equal(captured.graph_module(x), expected)


def test_a_function_that_takes_a_bool_only_gets_one() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.dropout(x, 0.5, self.training)

    model = nn.Sequential(nn.Linear(8, 8), Layer(), nn.Linear(8, 8)).eval()
    captured, x = capture(model, torch.randn(2, 8)), torch.randn(4, 8)
    assert captured.opaque == {}
    assert torch.equal(captured.graph_module(x), model(x))


def test_a_flag_is_as_good_as_a_bool_and_tells_of_its_reads() -> None:
    reads: list[str] = []
    on, off = (ModeFlag(value, "a", reads.append) for value in (True, False))
    assert on
    assert not off
    assert (on == True, on != off, int(on), 1 + on, on * 2, on & True, [3, 4][on]) == (True, True, 1, 2, 2, True, 4)  # noqa: E712
    assert repr(on) == "True"
    assert hash(on) == hash(True)
    assert set(reads) == {"a"}
    assert without_flags((on, [off], {"k": on})) == (True, [False], {"k": True})
