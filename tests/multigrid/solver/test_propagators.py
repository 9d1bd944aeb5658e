"""The maps of one step against plain torch: what they compute, how often, with which random numbers and buffers."""

import contextlib
import functools
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pararealize import capture, layer_parallel
from pararealize.errors import MultigridError
from pararealize.multigrid.solver.hierarchy import make_hierarchy
from pararealize.multigrid.solver.layers import find_layers
from pararealize.multigrid.solver.propagators import Adjoint, Forward, TimeStep, norm, without_autocast_cache
from tests.chains import F64, Chains, example


def maps_of(model: nn.Module, *, coarsening: int = 3, seed: int = 5, recording: bool = True) -> Forward:
    """The maps of a model whose layers read no context."""
    layers = find_layers(capture(model, example()))
    rows = {n: TimeStep(model, layer) for n, layer in enumerate(layers.layers)}
    return Forward(rows, make_hierarchy(layers.fixed, 2, coarsening), [], seed, recording=recording)


def count_calls(maps: Forward, n: int) -> list[Tensor]:
    """What layer n is called with from now on."""
    row, calls = maps.rows[n], []

    def f(u: Tensor, piece=row.f) -> Tensor:
        calls.append(u)
        return piece(u)

    row.f = f
    return calls


def expected(model: Chains, n: int, width: int, u: Tensor) -> Tensor:
    block = model.chains[0][n]
    f = block.h * block.second(torch.tanh(block.first(u)))
    return torch.relu(u + width * f) if block.post else u + width * f


@pytest.mark.parametrize("post", [False, True])
def test_steps_are_the_blocks_with_longer_steps_and_fixed_layers_the_transition(post: bool) -> None:
    model = Chains((6, 2), (4, 5), post=post).double()
    maps = maps_of(model)
    u = torch.randn(5, 4, dtype=F64)
    torch.testing.assert_close(maps.step(0, 4, u), expected(model, 4, 1, u))
    torch.testing.assert_close(maps.step(1, 1, u), expected(model, 3, 3, u))
    torch.testing.assert_close(maps.step(0, 6, u), torch.tanh(model.between[0](u)))
    torch.testing.assert_close(maps.step(1, 2, u), torch.tanh(model.between[0](u)))


@pytest.mark.parametrize("norm", [False, True])
def test_f_at_a_c_point_is_computed_once_for_all_that_read_it(norm: bool) -> None:
    """The coarse step, relaxation and the last sweep share it; a batch norm's counts only in the sweep."""
    model = Chains((6,), (4,), norm=norm).double()
    maps, u = maps_of(model), torch.randn(5, 4, dtype=F64)
    batches = model.chains[0][3].norm.num_batches_tracked if norm else torch.tensor(0)
    calls = count_calls(maps, 3) if not norm else []
    maps.step(1, 1, u)
    maps.step(0, 3, u)
    assert batches == 0
    maps.sweep(1, u)
    assert batches == int(norm)
    assert norm or len(calls) == 1
    assert sorted(maps.evaluations) == [3, 4, 5]


def test_only_the_same_tensor_at_the_beginning_of_an_interval_is_recognised() -> None:
    model = Chains((6,), (4,)).double()
    maps, u = maps_of(model), torch.randn(5, 4, dtype=F64)
    calls = count_calls(maps, 4)
    assert torch.equal(maps.step(0, 4, u), maps.step(0, 4, u))
    assert len(calls) == 2
    maps.step(0, 3, u)
    torch.testing.assert_close(maps.step(0, 3, 2 * u), expected(model, 3, 1, 2 * u))
    torch.testing.assert_close(maps.sweep(1, 3 * u), functools.reduce(lambda v, b: b(v), model.chains[0][3:], 3 * u))


def test_one_mask_a_step_and_layer_and_the_caller_s_random_state_stays() -> None:
    model = Chains((6,), (32,), drop=0.5).double()
    maps, u = maps_of(model), torch.randn(5, 32, dtype=F64)
    state = torch.get_rng_state()
    first = maps.step(0, 4, u)
    assert torch.equal(first, maps.step(0, 4, u.clone()))
    torch.manual_seed(99)
    assert torch.equal(first, maps.step(0, 4, u.clone()))
    torch.set_rng_state(state)
    maps.sweep(1, u)
    assert torch.equal(torch.get_rng_state(), state)
    model.chains[0][2].load_state_dict(model.chains[0][1].state_dict())
    assert not torch.equal(maps.step(0, 1, u), maps.step(0, 2, u))  # the same weights, another layer: another mask
    other = Forward(maps.rows, maps.hierarchy, [], 6, recording=False)
    assert not torch.equal(first, other.step(0, 4, u))


def test_without_recording_nothing_is_kept_for_an_adjoint() -> None:
    maps, u = maps_of(Chains((6,), (4,)).double(), recording=False), torch.randn(5, 4, dtype=F64)
    assert not maps.sweep(0, u).requires_grad
    assert maps.evaluations == {}


# The adjoint ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_transposes_are_autograd_s(post: bool, width: int) -> None:
    model = Chains((6,), (4,), post=post).double()
    maps, u, value = maps_of(model), *torch.randn(2, 5, 4, dtype=F64)
    for j in (0, 1):
        maps.sweep(j, u)
    adjoint = Adjoint(maps, [])
    # with time running backwards, layer 3 begins the first coarse step, and is the third fine one
    transposed = adjoint.step(0, 2, value) if width == 1 else adjoint.step(1, 0, value)
    _, vjp = torch.autograd.functional.vjp(functools.partial(expected, model, 3, width), u, value)
    torch.testing.assert_close(transposed, vjp)
    assert adjoint.gradients == {}


def test_the_last_sweep_gives_the_gradients_that_are_asked_for_and_frees_the_graphs() -> None:
    model = Chains((6,), (4,)).double()
    maps, u, value = maps_of(model), *torch.randn(2, 5, 4, dtype=F64)
    maps.sweep(1, u)
    wanted = [model.chains[0][3].first.weight, model.chains[0][5].second.bias]
    adjoint = Adjoint(maps, wanted)
    entering = adjoint.sweep(0, value)
    leaf = u.clone().requires_grad_()
    v = leaf
    for block in model.chains[0][3:]:
        v = block(v)
    gradients = torch.autograd.grad(v, [leaf, *wanted], value)
    torch.testing.assert_close(entering, gradients[0])
    assert adjoint.gradients.keys() == {id(tensor) for tensor in wanted}
    for tensor, gradient in zip(wanted, gradients[1:], strict=True):
        torch.testing.assert_close(adjoint.gradients[id(tensor)], gradient)
    with pytest.raises(RuntimeError, match="second time"):
        adjoint.sweep(0, value)


def test_graphs_stay_where_they_are_to_and_gradients_of_a_shared_weight_add_up() -> None:
    model = Chains((6,), (4,)).double()
    model.chains[0][5].first = model.chains[0][4].first
    maps, u, value = maps_of(model), *torch.randn(2, 5, 4, dtype=F64)
    maps.sweep(1, u)
    weight = model.chains[0][4].first.weight
    once, twice = Adjoint(maps, [weight], keep=True), Adjoint(maps, [weight])
    once.sweep(0, value)
    twice.sweep(0, value)
    v = u
    for block in model.chains[0][3:]:
        v = block(v)
    (gradient,) = torch.autograd.grad(v, weight, value)
    torch.testing.assert_close(once.gradients[id(weight)], gradient)
    torch.testing.assert_close(twice.gradients[id(weight)], gradient)


def test_parameters_are_looked_up_anew_and_frozen_ones_left_out() -> None:
    model = Chains((6,), (4,)).double()
    row = maps_of(model).rows[0]
    first = model.chains[0][0].first
    assert {id(p) for p in row.parameters()} == {id(p) for p in model.chains[0][0].parameters()}
    first.weight = nn.Parameter(torch.zeros(4, 4, dtype=F64))
    assert id(first.weight) in {id(p) for p in row.parameters()}
    first.bias.requires_grad_(False)
    assert id(first.bias) not in {id(p) for p in row.parameters()}


# Around them ---------------------------------------------------------------------------------------------------------


def test_the_norm_is_over_all_values_in_double_precision() -> None:
    values = [torch.full((3, 4), 2.0), torch.full((5,), -1.0, dtype=F64)]
    assert norm(values) == pytest.approx(math.sqrt(12 * 4 + 5))
    assert norm([]) == 0.0
    assert norm([torch.full((2,), 1e19), torch.full((2,), 1e19)]) == pytest.approx(2e19)  # its square is no float32


def test_a_weight_that_was_cast_without_a_graph_has_a_gradient_in_the_next_sweep() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast_cache():
            with torch.no_grad():
                layer(x)
            assert layer(x).requires_grad
            with contextlib.suppress(ZeroDivisionError), without_autocast_cache():
                raise ZeroDivisionError
            assert not torch.is_autocast_cache_enabled()
        assert torch.is_autocast_cache_enabled()


# Layers whose masks a seed brings back are taken; those that draw from elsewhere are refused, with the remedy.

SOURCES = {
    "torch": lambda: float(torch.rand(())) < 0.5,
    "python": lambda: random.random() < 0.5,
    "numpy": lambda: np.random.random() < 0.5,
}


class Drop(nn.Module):
    """Drops a whole branch, by a source of random numbers."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x if self.training and SOURCES[self.source]() else x


class Net(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(6))
        self.drop = nn.ModuleList(Drop(source) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer, drop in zip(self.layers, self.drop, strict=True):
            x = x + 0.2 * drop(torch.tanh(layer(x)))
        return x


def test_stochastic_depth_from_torch_s_seeds_converges_with_one_mask() -> None:
    net = layer_parallel(Net("torch"), 2, 2, 4, 1, example_inputs=torch.randn(4, 3), leaf_modules=[Drop])
    for _ in range(4):
        net(torch.randn(4, 3)).sum().backward()
        assert net.history[-1].forward[-1] < 1e-5


@pytest.mark.parametrize("source", ["python", "numpy"])
def test_other_sources_are_refused(source: str) -> None:
    state = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(MultigridError, match="draws from Python"):
        layer_parallel(Net(source), 2, 2, example_inputs=torch.randn(4, 3), leaf_modules=[Drop])
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
