"""What waits for what: backward, gradients pass in the order of the rules."""

from __future__ import annotations

import pytest
import torch

from pararealize.plan.actions import waits_for


@pytest.mark.parametrize("source", ["input", "stem"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_name_is_defined_and_nothing_waits_for_itself(n, source):
    forward = ["stem", "head", *(f"g{j}" for j in range(1, n + 1))]
    forward += [f"C{j}" for j in range(2, n + 1)] + [f"{name}{j}" for j in range(1, n) for name in "Fz"]
    forward += [f"x{j}" for j in range(2, n + 1)] if source == "stem" else []
    keys = [(name, way) for name in forward for way in ("forward", "backward")]
    done: set = set()
    while len(done) < len(keys):
        ready = [key for key in keys if key not in done and set(waits_for(key, n, source)) <= done]
        assert ready, f"these wait in a circle, or for what is not there: {set(keys) - done}"
        done.update(ready)


def test_the_backward_rules_by_hand():
    """Of four segments whose adapters read the stem."""
    rules = {
        "head": ["head"],
        "F3": ["head"],
        "z3": ["F3"],
        "g4": ["head"],
        "F2": ["z3"],
        "g3": ["z3"],
        "C3": ["g3", "F2"],
        "x3": ["C3"],
        "g1": ["z1"],
        "stem": ["g1", "x2", "x3", "x4"],
    }
    for name, needs in rules.items():
        assert [other for other, _ in waits_for((name, "backward"), 4, "stem")] == needs
    assert waits_for(("head", "backward"), 4) == [("head", "forward")]
    assert waits_for(("stem", "backward"), 4) == [("g1", "backward")]


@pytest.mark.parametrize("source", ["input", "stem"])
def test_gradients_flow_backward_along_the_same_edges(source):
    """Tensors named as actions are: the gradient functions that autograd visits are those the rules reach."""
    n, names = 4, {}
    x = torch.ones(1, requires_grad=True)

    def act(name: str, *inputs: torch.Tensor) -> torch.Tensor:
        total = inputs[0].clone()
        for other in inputs[1:]:
            total = total + other
        result = total * 2
        result.register_hook(lambda _: order.append(name))
        names[name] = result
        return result

    order: list[str] = []
    stem = act("stem", x)
    origin = {j: act(f"x{j}", stem) if source == "stem" else x for j in range(2, n + 1)}
    entry = {1: stem} | {j: act(f"C{j}", origin[j]) for j in range(2, n + 1)}
    y = {j: act(f"g{j}", entry[j]) for j in range(1, n + 1)}
    z = y[1]
    for j in range(1, n):
        F = act(f"F{j}", act(f"z{j}", z) - entry[j + 1])
        z = y[j + 1] + F
    act("head", z).backward()
    place = {name: i for i, name in enumerate(order)}
    for name in order:
        for other, way in waits_for((name, "backward"), n, source):
            assert way == "backward" or name == "head"
            assert name == "head" or place[other] < place[name], f"{name} needs {other}, which autograd visits later"
