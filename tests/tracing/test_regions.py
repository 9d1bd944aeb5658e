"""Grad modes, autocast, inference mode, checkpoints: where the model's nodes stand in them, its conversion's do."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pararealize import layer_parallel, pararealize, restack
from pararealize.errors import CaptureError
from pararealize.tracing.front_end import capture
from pararealize.tracing.regions import Autocast, Checkpoint, GradMode, deciding, in_both_modes
from tests.tracing.effects import Residual, assert_same

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")


def no_grad_around_the_stem(self: Residual, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = torch.relu(self.first(x)) * 2
    return self.head(self.body(x))


def no_grad_where_only_inputs_are_read(self: Residual, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().mean()
    return self.head(self.body(self.first(x) * scale))


def a_decorator(self: Residual, x: Tensor) -> Tensor:
    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        with torch.enable_grad():
            y = self.first(x)
        return x + y

    return self.head(self.body(self.first(x) + features(x)))


def a_function_without_with(self: Residual, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    x = self.first(x).tanh()
    torch.set_grad_enabled(True)
    return self.head(self.body(x))


def set_grad_enabled(self: Residual, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(False):
        y = self.first(x)
    with torch.set_grad_enabled(True):
        z = self.first(x)
    return self.head(self.body(self.first(x) + y * z))


@torch.enable_grad()
def gradients_always_on(self: Residual, x: Tensor) -> Tensor:
    return self.head(self.body(self.first(x)))


def an_early_return(self: Residual, x: Tensor) -> Tensor:
    with torch.no_grad():
        if x.ndim == 2:
            return self.head(self.body(self.first(x)))
    return self.head(x)


def a_value_returned_as_it_came(self: Residual, x: Tensor) -> Tensor:
    x = self.first(x)
    with torch.no_grad():
        x = torch.nn.functional.dropout(x, 0.5, training=False)
    return self.head(self.body(x))


def a_change_in_place(self: Residual, x: Tensor) -> Tensor:
    x = self.first(x)
    with torch.no_grad():
        x.mul_(2)
    return self.head(self.body(x))


def inference_mode(self: Residual, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = self.first(x) * 2
        y += 1
    return self.head(self.body(x + y.clone()))


def autocast_off(self: Residual, x: Tensor) -> Tensor:
    x = self.body(self.first(x))
    with torch.autocast("cpu", enabled=False):
        return self.head(x.float())


def autocast_on(self: Residual, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = self.body(self.first(x))
        with torch.autocast("cpu", enabled=False):
            x = x + self.first(x.float())
        x = self.first(x)
    return self.head(x.float())


def a_checkpoint(self: Residual, x: Tensor) -> Tensor:
    for layer in self.layers:
        x = checkpoint(lambda x, layer=layer: x + torch.tanh(layer(x)), x, use_reentrant=False)
    return self.head(x)


def a_reentrant_checkpoint(self: Residual, x: Tensor) -> Tensor:
    for layer in self.layers:
        x = checkpoint(lambda x, layer=layer: x + torch.tanh(layer(x)), x, use_reentrant=True)
    return self.head(x)


def a_reentrant_checkpoint_of_the_input(self: Residual, x: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        with torch.enable_grad():  # and yet its result requires no gradient, since none of its arguments does
            return self.first(x)

    return self.head(self.body(checkpoint(block, x, use_reentrant=True)))


def a_checkpoint_in_train_mode(self: Residual, x: Tensor) -> Tensor:
    for layer in self.layers:

        def block(x: Tensor, layer: nn.Module = layer) -> Tensor:
            return x + torch.tanh(layer(x))

        x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)
    return self.head(x)


def a_checkpoint_within_no_grad_and_around_it(self: Residual, x: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.first(x)
        return self.first(x) * y

    with torch.no_grad():
        y = checkpoint(block, x, use_reentrant=False)
    return self.head(self.body(checkpoint(block, x, use_reentrant=False) + y))


def saved_on_the_cpu(self: Residual, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        x = self.first(x).tanh()
    return self.head(self.body(x))


FORWARDS = [
    no_grad_around_the_stem, no_grad_where_only_inputs_are_read, a_decorator, a_function_without_with, set_grad_enabled,
    gradients_always_on, an_early_return, a_value_returned_as_it_came, a_change_in_place, inference_mode, autocast_off,
    autocast_on, a_checkpoint, a_reentrant_checkpoint, a_reentrant_checkpoint_of_the_input, a_checkpoint_in_train_mode,
    a_checkpoint_within_no_grad_and_around_it, saved_on_the_cpu,
]  # fmt: skip


def model_of(forward: Callable[..., Any], layers: int = 4) -> Residual:
    torch.manual_seed(0)
    return type(forward.__name__, (Residual,), {"forward": forward})(layers)


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_a_region_of_the_forward_is_one_of_the_network(forward: Callable[..., Any]) -> None:
    model, x = model_of(forward), torch.randn(4, 8)
    captured = capture(model, x)
    assert captured.opaque == {}
    net = pararealize(model, n=1, example_inputs=x)
    assert_same(
        model, [captured.graph_module, net, copy.deepcopy(net)], x, tolerance=2e-2 if forward is autocast_on else 1e-6
    )
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_a_frozen_backbone_as_one_call_stays_frozen() -> None:
    """The remedy itself gives a right network: an opaque module is called within the region that calls it."""

    class Probe(Residual):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.first(x)
            return self.head(self.body(x))

    model, x = Probe(), torch.randn(4, 8)
    net = pararealize(model, n=1, example_inputs=x, leaf_modules=["first"])
    net(x).sum().backward()
    assert net.get_parameter("first.weight").grad is None
    assert net.get_parameter("head.weight").grad is not None


def test_a_checkpoint_computes_anew_in_backward() -> None:
    model, x = model_of(a_checkpoint), torch.randn(4, 8)
    net = pararealize(model, n=2, coarse="linear", example_inputs=x)
    calls = []
    for layer in net.get_submodule("layers").children():
        layer.register_forward_hook(lambda *_: calls.append(1))
    net(x).sum().backward()
    assert len(calls) == 2 * 4


def test_other_networks_keep_regions_too() -> None:
    """Runge-Kutta steps of one stage, and layer-parallel training without parallelism, are the model itself."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = torch.sigmoid(self.linear(x))
            return x + scale * self.linear(x)

    model, x = nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(4)), nn.Linear(8, 3)), torch.randn(4, 8)
    nets = [restack(model, "euler", example_inputs=x), layer_parallel(model, example_inputs=x, exact=True)]
    assert_same(model, nets, x)


def test_a_forward_that_leaves_gradients_off_is_refused() -> None:
    def forward(self: Residual, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return self.head(self.body(x))

    with torch.enable_grad(), pytest.raises(CaptureError, match="leaves gradients or autocast switched"):
        capture(model_of(forward), torch.randn(2, 8))


def test_compiled_code_has_the_regions() -> None:
    model, x = model_of(no_grad_around_the_stem), torch.randn(4, 8)
    net = pararealize(model, n=1, example_inputs=x)
    net.compile(backend="eager")
    assert_same(model, [net], x)


def test_of_two_modes_one_region() -> None:
    off, cast = GradMode(False), Autocast("cpu", torch.bfloat16, True, True)
    first, second = Checkpoint(0, True, ()), Checkpoint(7, False, ())
    assert deciding((off, first, cast)) == (off, cast)
    assert in_both_modes((off, first), (off, second)) == (off, first)
    assert in_both_modes((off,), (off, second)) == (off, Checkpoint(-8, False, ()))
    assert in_both_modes((first, off), (off,)) == (Checkpoint(1, False, ()), off)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no autocast": lambda: torch.autocast("cpu", enabled=False),
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
@example(3956, 5)  # values from outside were packed where gradients are off, and had none behind it
def test_random_nestings(seed: int, size: int) -> None:
    """Programs of layers, sums and changes in place, within contexts and checkpoints nested at random."""

    def run(net: Residual, x: Tensor, draws: random.Random, depth: int) -> Tensor:
        for _ in range(draws.randint(1, size)):
            action = draws.choice(["layer", "sum", "context", "context", "checkpoint", "change"])
            if action == "layer":
                x = draws.choice(list(net.layers))(x.float())
            elif action == "sum":
                x = x + torch.tanh(x)
            elif action == "change":
                x = x.clone().mul_(0.5)
            elif depth < 3:
                seed = draws.random()

                def part(x: Tensor, seed: float = seed) -> Tensor:
                    return run(net, x, random.Random(seed), depth + 1)

                if action == "checkpoint":
                    x = checkpoint(part, x, use_reentrant=depth == 0 and draws.random() < 0.3)
                else:
                    with CONTEXTS[draws.choice(list(CONTEXTS))]():
                        y = part(x)
                    x = x * 0.5 + y
        return x

    def forward(self: Residual, x: Tensor) -> Tensor:
        return self.head(self.body(self.first(x) + run(self, x, random.Random(seed), 0).float()))

    model, x = model_of(forward, 3), torch.randn(4, 8)
    try:
        assert_same(model, [model], x)
    except RuntimeError:  # such as: inference tensors cannot be saved for backward
        assume(False)
    assert_same(model, [pararealize(model, n=1, example_inputs=x)], x, tolerance=2e-2)
