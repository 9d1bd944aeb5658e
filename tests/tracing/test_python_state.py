"""Snapshots of Python state compare as the state does."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pararealize.tracing.python_state import changes_between, line_of, names_host_random, names_mode, snapshot


class Holder(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.value = x
        return self.layer(x)

    def jitter(self, x: torch.Tensor) -> torch.Tensor:
        return x * random.random()


class Jittering(Holder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.jitter(x)


def changed(model: nn.Module, change: Any) -> list[tuple[str, str]]:
    before = snapshot(model, lambda *_: False)
    change()
    return [(place.path, place.name) for place in changes_between(before, snapshot(model, lambda *_: False))]


VALUES: dict[str, tuple[Any, Any]] = {
    "a list": ([1], lambda value: value.append(2)),
    "a nested dictionary": ({"a": [{}]}, lambda value: value["a"][0].update(b=1)),
    "a set": ({1}, lambda value: value.add(2)),
    "an array": (np.zeros(2), lambda value: value.__setitem__(0, 1)),
    "a tensor": (torch.zeros(2), lambda value: value.add_(1)),
    "random numbers": (random.Random(0), lambda value: value.random()),
    "a count": (itertools.count(), next),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_changed_is_named(kind: str) -> None:
    value, change = VALUES[kind]
    model = nn.Sequential(Holder(1), Holder(value))
    assert changed(model, lambda: change(value)) == [("1", "value")]
    assert changed(model, lambda: None) == []


def test_a_cycle_ends_and_a_nan_is_equal_to_itself() -> None:
    value: list[Any] = [float("nan")]
    value.append(value)
    assert changed(Holder(value), lambda: None) == []


def test_settings_of_layers() -> None:
    model = Holder(0)
    assert changed(model, lambda: setattr(model.layer, "out_features", 3)) == [("layer", "settings")]


def test_lines_and_random_numbers_are_found_in_the_code() -> None:
    assert "test_python_state.py" in line_of(Holder(0), "value")
    assert int(line_of(Holder(0), "nothing").rpartition(":")[2]) == Holder.forward.__code__.co_firstlineno
    assert (names_host_random(Holder(0)), names_host_random(Jittering(0))) == (False, True)


def test_who_names_the_mode():
    class Drops(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, self.training)

    assert names_mode(Drops())
    assert not names_mode(nn.Sequential(nn.Linear(2, 2)))
