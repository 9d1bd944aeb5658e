"""Conversions at once in several threads, beside threads that train and run models: all right, torch as before."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pararealize import (
    capture,
    count_costs,
    find_blocks,
    layer_parallel,
    make_plan,
    measure_costs,
    pararealize,
    plan_strategies,
    receptive_fields,
    restack,
    tradeoff,
)
from pararealize.analysis.fields.dependency import dependencies
from pararealize.analysis.inner_look import look_inside
from pararealize.analysis.operations import list_chain_operations
from pararealize.errors import PararealizeError
from pararealize.reports.network import section_of_chain


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean() + 1
        return x + self.drop(torch.tanh(self.norm(self.linear(x)))) / scale


class Refused(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if x.sum() > 0 else -x


def model_of(seed: int, kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(nn.Linear(8, 8), *(Block() for _ in range(4)), nn.Linear(8, 3))


class Threads:
    """Threads whose faults are told at the end; bystanders run until the others are done."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.stop = threading.Event()
        self._workers: list[threading.Thread] = []
        self._bystanders: list[threading.Thread] = []

    def add(self, work: Callable[[], None], *, again: bool = False) -> None:
        def run() -> None:
            try:
                work()
                while again and not self.stop.is_set():
                    work()
            except BaseException as error:  # noqa: BLE001
                self.faults.append(f"{type(error).__name__}: {error}")

        (self._bystanders if again else self._workers).append(threading.Thread(target=run))

    def run(self) -> None:
        for thread in (*self._bystanders, *self._workers):
            thread.start()
        for thread in self._workers:
            thread.join()
        self.stop.set()
        for thread in self._bystanders:
            thread.join()
        assert self.faults == []


def settings_of_torch() -> tuple[Any, ...]:
    return (
        nn.Module.__call__,
        nn.Module._call_impl,
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.overrides._get_current_function_mode_stack(),
    )


def train_another() -> None:
    """A step of a model of this thread's own; with dropout, so that it draws from torch's generator."""
    model = model_of(9)
    model(torch.ones(4, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def apply_functions() -> None:
    x = torch.ones(2, requires_grad=True)
    y = Doubled.apply(x)
    y.sum().backward()
    assert torch.equal(y.detach(), torch.full((2,), 2.0))
    assert torch.equal(x.grad, torch.full((2,), 2.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("round_", range(3))
def test_many_at_once_beside_threads_that_train(round_: int) -> None:
    before, threads = settings_of_torch(), Threads()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    shared = model_of(7).eval()
    right = shared(x)

    def convert(seed: int) -> None:
        model = model_of(seed).eval()
        net = pararealize(model, n=1, example_inputs=x)
        assert torch.allclose(net(x), model(x), atol=1e-6)
        assert torch.equal(restack(model, "euler", example_inputs=x)(x), model(x))

    def convert_shared() -> None:
        assert torch.allclose(
            pararealize(shared, n=2, coarse="exact", example_inputs=x).iterate(x, 1), right, atol=1e-6
        )

    def refuse() -> None:
        try:
            pararealize(model_of(3, Refused), n=2, example_inputs=x)
        except PararealizeError:
            return
        raise AssertionError("converted")

    def run_shared() -> None:
        assert torch.equal(shared(x), right)
        assert not any(module.training for module in shared.modules())

    for seed in range(2):
        threads.add(lambda seed=seed: convert(seed))
    for work in (convert_shared, convert_shared, refuse):
        threads.add(work)
    for work in (train_another, apply_functions, run_shared):
        threads.add(work, again=True)
    threads.run()
    assert settings_of_torch() == before


def test_one_seed_gives_one_network_whatever_other_threads_draw() -> None:
    x, threads = torch.ones(4, 8), Threads()
    expected = pararealize(model_of(0), n=3, coarse="linear", source="stem", example_inputs=x, seed=5).state_dict()
    results, models = [], [model_of(0) for _ in range(3)]

    def draw() -> None:
        torch.rand(100)
        random.random()
        np.random.rand()

    def convert() -> None:
        net = pararealize(models.pop(), n=3, coarse="linear", source="stem", example_inputs=x, seed=5)
        results.append(net.state_dict())

    for _ in range(3):
        threads.add(convert)
    threads.add(draw, again=True)
    threads.run()
    assert len(results) == 3
    for state in results:
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_numbers_of_another_thread_are_not_drawn_twice() -> None:
    """Random states that are put back after a conversion would take back what others drew meanwhile."""
    drawn: list[float] = []
    threads, model = Threads(), model_of(1).eval()

    def convert() -> None:
        pararealize(model, n=2, coarse="linear", example_inputs=torch.ones(4, 8))

    threads.add(convert)
    threads.add(lambda: drawn.extend(torch.rand(50, dtype=torch.float64).tolist()), again=True)
    threads.run()
    assert len(set(drawn)) == len(drawn)


def test_compiled_models_run_as_before_afterwards() -> None:
    threads = Threads()
    compiled = torch.compile(nn.Linear(8, 8), backend="eager")
    compiled(torch.ones(2, 8))
    for seed in range(3):
        threads.add(lambda seed=seed: pararealize(model_of(seed).eval(), n=1, example_inputs=torch.ones(4, 8)))
    threads.run()
    assert torch._dynamo.eval_frame._stance.stance == "default"


class Watched(dict[str, Any]):
    """A module's tensors; says what was put in the place of one."""

    swaps: list[str]

    def __setitem__(self, name: str, value: Any) -> None:
        self.swaps.append(name)
        super().__setitem__(name, value)


class Opaque(nn.Module):
    """A block that is one call, which is looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(self.linear(x)))


def watched(model: nn.Module) -> list[str]:
    """The names of tensors that are swapped from here on."""
    swaps: list[str] = []
    for module in model.modules():
        for kind in ("_parameters", "_buffers"):
            module.__dict__[kind] = contents = Watched(module.__dict__[kind])
            contents.swaps = swaps
    return swaps


X = torch.randn(6, 8)
READERS: dict[str, Callable[[nn.Module], object]] = {
    "pararealize": lambda model: pararealize(model, n=2, example_inputs=X),
    "costs in seconds": lambda model: pararealize(model, n=2, example_inputs=X, cost="seconds"),
    "blocks that are one call": lambda model: pararealize(model, n=2, example_inputs=X, leaf_modules=[Opaque]),
    "restack": lambda model: restack(model, scheme="midpoint", example_inputs=X),
    "layer_parallel": lambda model: layer_parallel(model, coarsening=2, example_inputs=X),
    "tradeoff": lambda model: tradeoff(model, [X, X], n=[2]),
    "plan_strategies": lambda model: plan_strategies(model, X, devices=2, batch_size=8, curves=False),
    "count_costs": lambda model: count_costs(find_blocks(capture(model, X))),
    "measure_costs": lambda model: measure_costs(find_blocks(capture(model, X)), repeats=1, warmup=0),
    "list_chain_operations": lambda model: list_chain_operations(find_blocks(capture(model, X))),
    "look_inside": lambda model: look_inside(chain := find_blocks(capture(model, X)), chain.blocks[1]),
    "receptive_fields": lambda model: receptive_fields(find_blocks(capture(model, X, leaf_modules=[Opaque]))),
    "dependencies": lambda model: dependencies(find_blocks(capture(model, X, leaf_modules=[Opaque]))),
    "make_plan": lambda model: make_plan(find_blocks(capture(model, X)), 2, cost="seconds"),
    "section_of_chain": lambda model: section_of_chain(find_blocks(capture(model, X)), title="blocks"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_models_own_tensors_stay_where_they_are(reader: str) -> None:
    """Whoever uses the model meanwhile finds its parameters and buffers in it, at every moment."""
    model = nn.Sequential(nn.Linear(8, 8), *(Opaque() for _ in range(4)), nn.Linear(8, 3))
    swaps = watched(model)
    READERS[reader](model)
    assert swaps == []
