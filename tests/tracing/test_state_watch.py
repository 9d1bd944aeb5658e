"""Python state that a forward changes is changed by each call of the conversion, or the model is refused."""

from __future__ import annotations

import copy
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize import pararealize
from pararealize.errors import CaptureError
from pararealize.tracing.front_end import capture
from tests.tracing.effects import assert_same

COUNT = 0
LOG: list[int] = []


class Tally:
    calls = 0


TALLY = Tally()


def count_up() -> None:
    global COUNT
    COUNT += 1


class Block(nn.Module):
    calls_of_all = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.calls, self.kept, self.table = 0, None, None
        self.nested: dict[str, Any] = {"inner": [0]}
        self.tally, self.log, self.seen, self.counter = Tally(), [0], {0}, Counter("a")
        self.queue = deque([0], maxlen=3)
        self.steps = torch.zeros(1)
        cell = [0]
        self.count = lambda: cell.__setitem__(0, cell[0] + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = CHANGES.get(self.nested.get("change", ""), lambda block, x: x)(self, x)
        return x + torch.tanh(self.linear(x))


def set_calls(block: Block, x: Tensor) -> Tensor:
    block.calls += 1
    return x * (1 + 0.1 * block.calls)


def on(action: Callable[[Block, Tensor], Any]) -> Callable[[Block, Tensor], Tensor]:
    def change(block: Block, x: Tensor) -> Tensor:
        action(block, x)
        return x

    return change


def use_table(block: Block, x: Tensor) -> Tensor:
    if block.table is None or len(block.table) != x.shape[-1]:
        block.table = torch.arange(x.shape[-1], dtype=torch.float32)
    return x + block.table


def keep_size(block: Block, x: Tensor) -> Tensor:
    block.kept = x.shape[1:]
    return x * block.kept[0]


def start_once(block: Block, x: Tensor) -> Tensor:
    if block.calls == 0:
        x = x * 2
    block.calls = 1
    return x


EFFECTS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "counter": set_calls,
    "nested": on(lambda block, x: block.nested["inner"].append(1)),
    "object": on(lambda block, x: setattr(block.tally, "calls", block.tally.calls + 1)),
    "list": on(lambda block, x: block.log.append(1)),
    "set": on(lambda block, x: block.seen.add(len(block.seen))),
    "counter of collections": on(lambda block, x: block.counter.update("a")),
    "queue": on(lambda block, x: block.queue.append(len(block.queue))),
    "tensor": on(lambda block, x: block.steps.add_(1)),
    "kept tensor": on(lambda block, x: setattr(block, "kept", x)),
    "kept in a dictionary": on(lambda block, x: block.nested.update(kept=x.detach())),
    "closure": on(lambda block, x: block.count()),
    "first call": start_once,
}
STATE = ("calls", "log", "seen", "counter", "queue", "steps")
HARMLESS = {"size": keep_size, "table": use_table}
CHANGES = EFFECTS | HARMLESS


def model_of(change: str, *, outer: bool = False) -> nn.Module:
    torch.manual_seed(0)

    class Whole(Block):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*(Block() for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(super().forward(x))

    if outer:
        model: nn.Module = Whole()
        block = model
    else:
        model = nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(4)), nn.Linear(8, 3))
        block = model[2]
    block.nested["change"] = change  # type: ignore[index,operator,union-attr]
    return model


@pytest.mark.parametrize("change", EFFECTS)
def test_a_block_that_changes_state_is_one_call(change: str) -> None:
    """Its conversion does the same in the first call, the second and the third, and the user's model is as before."""
    model, x = model_of(change), torch.randn(4, 8)
    before = copy.deepcopy({name: getattr(model[2], name) for name in STATE})
    captured = capture(model, x)
    assert "2" in captured.opaque
    net = pararealize(model, n=2, coarse="linear", example_inputs=x)
    assert net.get_submodule("2") is not model[2]
    assert before == {name: getattr(model[2], name) for name in STATE}
    net = pararealize(model, n=1, example_inputs=x)
    for _ in range(3):
        assert torch.allclose(net(x), model(x), atol=1e-6)
    ours, theirs = net.get_submodule("2"), model[2]
    for name in STATE:
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("change", EFFECTS)
def test_a_model_that_changes_its_own_is_refused_with_the_line(change: str) -> None:
    with pytest.raises(CaptureError, match=r"test_state_watch.py:\d+.*a module of its own"):
        capture(model_of(change, outer=True), torch.randn(4, 8))


@pytest.mark.parametrize("change", HARMLESS)
def test_a_cache_is_none(change: str) -> None:
    model, x = model_of(change), torch.randn(4, 8)
    captured = capture(model, x)
    assert captured.opaque == {}
    assert_same(model, [captured.graph_module], x)


class Counting(nn.Module):
    """It counts in variables: of the file, of a class, of an object of the file's."""

    total = 0

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(8, 8), where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "global":
            count_up()
        elif self.where == "list":
            LOG.append(1)
        elif self.where == "object":
            TALLY.calls += 1
        elif self.where == "class":
            Counting.total += 1
        return self.linear(x)


def counts() -> tuple[int, ...]:
    return COUNT, len(LOG), TALLY.calls, Counting.total


@pytest.mark.parametrize("where", ["global", "list", "object", "class"])
def test_variables_outside_of_the_model(where: str) -> None:
    model, x = nn.Sequential(*(Counting(where) for _ in range(4))), torch.randn(4, 8)
    net = pararealize(model, n=2, coarse="linear", example_inputs=x)
    before = counts()
    net(x)
    assert sum(counts()) - sum(before) == 4


def test_a_parent_that_changes_its_child_is_the_one_that_does() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Block()

        def forward(self, x: Tensor) -> Tensor:
            self.child.calls += 1
            return self.child(x)

    model, x = nn.Sequential(Parent(), *(nn.Linear(8, 8) for _ in range(6))), torch.randn(4, 8)
    assert list(capture(model, x).opaque) == ["0"]
    assert list(capture(model, x, leaf_modules=["0.child"]).opaque) == ["0"]


def test_random_numbers_of_another_thread_are_its_own() -> None:
    """The recorder took Python's numbers, drawn meanwhile by a thread that augments images, for the model's."""
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(3):
            assert (
                capture(nn.Sequential(*(nn.Sequential(nn.Linear(8, 8)) for _ in range(9))), torch.randn(2, 8)).opaque
                == {}
            )
    finally:
        stop.set()
        thread.join()
