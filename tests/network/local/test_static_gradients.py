"""Whether ``.grad`` is the memory that graphs write to: at once where all changed, in its turn where one did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.network.local.static_gradients import StaticGradients
from pararealize.network.local.tensor_stamp import LOOKS


def made(count: int) -> tuple[list[nn.Parameter], list[torch.Tensor], StaticGradients]:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(count)]
    memory = [torch.full((2,), 7.0) for _ in range(count)]
    return parameters, memory, StaticGradients([*zip(parameters, memory, strict=True)])


@pytest.mark.parametrize("count", [0, 1, 3 * LOOKS])
def test_what_was_there_is_kept_or_overwritten(count: int) -> None:
    parameters, memory, static = made(count)
    for i, parameter in enumerate(parameters):
        parameter.grad = None if i % 2 else torch.ones(2)
    assert static.attach(keep=True) == (count > 0)
    assert [float(m[0]) for m in memory] == [float(i % 2 == 0) for i in range(count)]
    assert all(p.grad is m for p, m in zip(parameters, memory, strict=True))
    assert not static.attach(keep=True)
    static.add([torch.ones(2)] * count)
    for parameter in parameters:
        parameter.grad = None
    static.attach(keep=False)
    assert [float(m[0]) for m in memory] == [float(i % 2 == 0) + 1 for i in range(count)]
    static.release()
    assert all(p.grad is not m and torch.equal(p.grad, m) for p, m in zip(parameters, memory, strict=True))  # type: ignore[arg-type]
    assert not static.attach(keep=False)


def test_one_of_many_is_seen_in_its_turn() -> None:
    parameters, memory, static = made(3 * LOOKS)
    static.attach(keep=False)
    parameters[17].grad = None
    assert sum(static.attach(keep=False) for _ in range(4)) == 1
    assert parameters[17].grad is memory[17]
