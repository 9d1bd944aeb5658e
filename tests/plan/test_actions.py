"""What waits for what: backward, gradients pass in the order of the rules."""

from __future__ import annotations

import pytest
import torch

from pararealize.plan.actions import Action, ActionKey, Operation, Span, formula, in_order, waits_for

LETTERS: dict[str, Operation] = {
    "C": "adapter", "g": "fine", "F": "coarse", "x": "send x", "z": "send z", "stem": "stem", "head": "head",
}  # fmt: skip


def key_of(name: str, direction: str = "forward") -> ActionKey:
    """The key of a name of the equation."""
    letter = name.rstrip("0123456789")
    key = ActionKey(LETTERS[letter], direction, int(name[len(letter) :] or 0))
    assert key.name == name
    return key


@pytest.mark.parametrize("source", ["input", "stem"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_name_is_defined_and_nothing_waits_for_itself(n, source):
    forward = ["stem", "head", *(f"g{j}" for j in range(1, n + 1))]
    forward += [f"C{j}" for j in range(2, n + 1)] + [f"{name}{j}" for j in range(1, n) for name in "Fz"]
    forward += [f"x{j}" for j in range(2, n + 1)] if source == "stem" else []
    keys = [key_of(name, way) for name in forward for way in ("forward", "backward")]
    done: set = set()
    while len(done) < len(keys):
        ready = [key for key in keys if key not in done and set(waits_for(key, [n], source)) <= done]
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
        assert [other.name for other in waits_for(key_of(name, "backward"), [4], "stem")] == needs
    assert waits_for(key_of("head", "backward"), [4]) == [key_of("head")]
    assert waits_for(key_of("stem", "backward"), [4]) == [key_of("g1", "backward")]


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
        for other in waits_for(key_of(name, "backward"), [n], source):
            assert other.direction == "backward" or name == "head"
            assert name == "head" or place[other.name] < place[name], f"{name} needs {other}, visited later"


def test_windows_wait_for_one_another():
    """Of two windows of three and two segments: what begins window 2 is w_1, the last z of window 1."""

    def needs(operation, direction, j=0, m=0):
        return sorted(map(str, waits_for(ActionKey(operation, direction, j, m=m), [3, 2], "stem")))

    assert needs("send x", "forward", 2, m=2) == needs("send x", "forward", 1, m=2) == ["F1_2"]
    assert needs("fine", "forward", 1, m=2) == ["x2_1"]
    assert needs("adapter", "forward", 2, m=2) == ["x2_2"]
    assert needs("coarse", "forward", 1, m=2) == ["g2_2", "z2_1"]
    assert needs("head", "forward") == ["F2_1"]
    assert needs("coarse", "backward", 2, m=1) == needs("fine", "backward", 3, m=1) == ["x2_1'", "x2_2'"]
    assert needs("stem", "backward") == ["g1_1'", "x1_2'", "x1_3'"]


def test_keys_print_as_in_the_mathematics():
    keys = [
        ActionKey("stem", "forward"), ActionKey("head", "backward"), ActionKey("context", "forward", 3),
        ActionKey("fine", "backward", 0), ActionKey("coarse", "forward", 3, 2), ActionKey("sum", "forward", 12, 1),
        ActionKey("send sum", "forward", 4), ActionKey("send v", "backward", 2, 11),
    ]  # fmt: skip
    assert list(map(str, keys)) == ["stem", "head'", "c3", "g0'", "F3.2", "s12.1", "t4", "v2.11'"]
    assert [key.kind for key in keys] == ["stem", "head", "adapter", "fine", "coarse", "coarse", "transfer", "transfer"]


def test_names_as_formulas():
    shown = [formula(name) for name in ("g3", "g2_3", "s12.1", "stem", "F", "thinking", "g3x")]
    assert shown == ["$g^{3}$", "$g^{2,3}$", "$s^{12.1}$", "stem", "F", "thinking", "g3x"]


def test_actions_stand_in_order_and_know_the_places_of_what_they_need():
    late, early, same, short = map(key_of, ("g1", "stem", "g2", "C2"))
    spans = {
        late: Span(0, 1, 1.0, 3.0),
        same: Span(1, 2, 1.0, 3.0),
        short: Span(1, 2, 1.0, 2.0),
        early: Span(0, 1, 0.0, 1.0, to=1),
    }
    actions = in_order(spans, {late: [early, early], same: [late, short, early], short: [], early: []})
    assert [action.name for action in actions] == ["stem", "C2", "g1", "g2"]
    assert [action.after for action in actions] == [(), (), (0,), (0, 1, 2)]
    first = Action(name="stem", kind="stem", direction="forward", j=1, rank=0, to=1, start=0.0, end=1.0)
    assert actions[0] == first
