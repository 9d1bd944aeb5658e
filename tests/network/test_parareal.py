"""The mathematics against independent oracles: the serial network, autograd, and the two forms against each other."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pararealize.errors import PlanError
from pararealize.network import parareal

TOLERANCE = 1e-10


@st.composite
def linear_networks(draw, *, bias=False):
    """Random float64 matrices: N segments, N adapters that share no width with them, and an input of 3 rows."""
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    source = draw(st.integers(1, 4))

    def matrix(rows, columns):
        weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) / math.sqrt(columns)
        return weight.requires_grad_()

    segments = [matrix(b, a) for a, b in pairwise(widths)]
    offsets = [torch.randn(b, generator=generator, dtype=torch.float64) * bias for b in widths[1:]]
    adapters = [matrix(a, source) for a in widths[:-1]]
    x = torch.randn(3, source, generator=generator, dtype=torch.float64).requires_grad_()
    return x, adapters, segments, offsets


def linear(weight, offset=None):
    return lambda u: u @ weight.T if offset is None else u @ weight.T + offset


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).norm() <= TOLERANCE * (1 + expected.norm()))


def gradients(value, inputs):
    return torch.autograd.grad(value.square().sum(), inputs, allow_unused=True, retain_graph=True)


@given(linear_networks())
def test_proposition_1_outputs_and_gradients(network):
    x, C, W, _ = network
    segments = [linear(w) for w in W]
    serial = parareal.compose(linear(C[0])(x), segments)[-1]
    parallel = parareal.correction(x, [linear(c) for c in C], segments, segments[1:])
    assert close(parallel, serial)
    inputs = [x, C[0], *W]
    for mine, theirs in zip(gradients(parallel, inputs), gradients(serial, inputs)):
        assert close(mine, theirs)
    for unused in gradients(parallel, C[1:]) if C[1:] else ():  # what the adapters say cancels
        assert unused.norm() <= TOLERANCE * (1 + serial.square().sum())


@given(linear_networks(bias=True))
def test_affine_networks_are_exact_with_the_linear_parts(network):
    x, C, W, b = network
    segments = [linear(w, offset) for w, offset in zip(W, b)]
    serial = parareal.compose(linear(C[0])(x), segments)[-1]
    parallel = parareal.correction(x, [linear(c) for c in C], segments, [linear(w) for w in W[1:]])
    assert close(parallel, serial)


def test_affine_network_is_not_exact_with_the_affine_maps_themselves():
    segments = [lambda u: u + 1.0] * 3
    adapters = [lambda u: u] * 3
    assert parareal.correction(0.0, adapters, segments, segments[1:]) != parareal.compose(0.0, segments)[-1]


@given(linear_networks(bias=True))
def test_difference_form_telescopes_for_nonlinear_networks(network):
    x, C, W, b = network
    segments = [lambda u, w=w, c=c: torch.tanh(u @ w.T + c) * 2 for w, c in zip(W, b)]
    adapters = [linear(c) for c in C]
    serial = parareal.compose(adapters[0](x), segments)[-1]
    coarse = [parareal.difference(g, adapter(x)) for g, adapter in zip(segments[1:], adapters[1:])]
    parallel = parareal.correction(x, adapters, segments, coarse)
    assert close(parallel, serial)
    for mine, theirs in zip(gradients(parallel, [x, *W]), gradients(serial, [x, *W])):
        assert close(mine, theirs)


@given(linear_networks(bias=True), st.data())
def test_message_form_equals_residual_form(network, data):
    """``messages`` is the traffic of the runtimes, ``correction`` the paper's text: same outputs, same gradients."""
    x, C, W, b = network
    segments = [lambda u, w=w, c=c: torch.relu(u @ w.T + c) for w, c in zip(W, b)]
    coarse = [lambda u, w=w: torch.sin(u @ w.T) for w in W[1:]]
    adapters = [linear(c) for c in C]
    residual_form = parareal.correction(x, adapters, segments, coarse)
    z = parareal.messages(x, adapters, segments, coarse)
    assert len(z) == len(W)
    assert close(z[-1], residual_form)
    for mine, theirs in zip(gradients(z[-1], [x, *C, *W]), gradients(residual_form, [x, *C, *W])):
        assert (mine is None) == (theirs is None)
        assert mine is None or close(mine, theirs)


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_finite_termination_bit_for_bit(N, seed, dtype):
    """After k iterations the first k interfaces are the serial ones, whatever G is; k = N gives the network itself."""
    generator = torch.Generator().manual_seed(seed)
    W = [torch.randn(4, 4, generator=generator, dtype=dtype) for _ in range(2 * N)]
    segments = [lambda u, w=w: torch.tanh(u @ w) + u for w in W[:N]]
    coarse = [lambda u, w=w: 3 * u @ w for w in W[N:]]  # nothing to do with the segments
    u = torch.randn(2, 4, generator=generator, dtype=dtype)
    serial = parareal.compose(u, segments)
    for k in range(N + 1):
        for j, value in enumerate(parareal.iterate(u, segments, coarse, k)):
            assert torch.equal(value, serial[j]) or j > k


@given(linear_networks(bias=True))
def test_one_iteration_of_classic_parareal_is_the_network_with_difference_coarse_maps(network):
    x, C, W, b = network
    adapters, segments = [linear(c) for c in C], [lambda u, w=w, c=c: torch.tanh(u @ w.T + c) for w, c in zip(W, b)]
    coarse = [lambda u, w=w: torch.sin(u @ w.T) for w in W]
    x_, _ = parareal.fine(x, adapters, segments)
    U = parareal.iterate(x_[0], segments, coarse, 1, start=x_[1:])
    F = [parareal.difference(G, x_j) for G, x_j in zip(coarse[1:], x_[1:])]
    for z_j, U_j in zip(parareal.messages(x, adapters, segments, F), U[1:]):
        assert close(z_j, U_j)


def test_a_smooth_problem_converges_long_before_n():
    """u' = -u on [0, 1], ten segments: each iteration gains an order of the coarse method's error."""
    N, exact, euler = 10, [math.exp(-0.1)] * 10, [1 / 1.1] * 10
    segments, coarse = [lambda u, a=a: a * u for a in exact], [lambda u, a=a: a * u for a in euler]
    serial = parareal.compose(1.0, segments)
    errors = [abs(parareal.iterate(1.0, segments, coarse, k)[N] - serial[N]) for k in range(4)]
    assert all(later < earlier / 10 for earlier, later in pairwise(errors))


def test_floats_and_one_segment():
    assert parareal.correction(2.0, [lambda u: u + 1], [lambda u: u * 10], []) == 30.0
    assert parareal.messages(2.0, [lambda u: u + 1], [lambda u: u * 10], []) == [30.0]
    assert parareal.iterate(2.0, [lambda u: u * 10], [lambda u: u], 0) == [2.0, 2.0]


@pytest.mark.parametrize("adapters, segments, coarse", [(2, 3, 2), (3, 3, 3), (0, 0, 0), (1, 1, 1)])
def test_numbers_that_do_not_fit(adapters, segments, coarse):
    maps = [lambda u: u] * 3
    for form in (parareal.correction, parareal.messages):
        with pytest.raises(PlanError, match=f"{adapters} adapters, {segments} segments, {coarse} coarse maps"):
            form(0.0, maps[:adapters], maps[:segments], maps[:coarse])


@pytest.mark.parametrize("coarse, k, start", [(1, 1, None), (2, -1, None), (2, 1, [0.0, 0.0])])
def test_iterate_numbers_that_do_not_fit(coarse, k, start):
    maps = [lambda u: u] * 2
    with pytest.raises(PlanError, match=f"2 segments, {coarse} coarse propagators"):
        parareal.iterate(0.0, maps, maps[:coarse], k, start=start)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["identity", "linear"]), max_size=9), st.integers(0, 2**32 - 1))
def test_a_reduction_is_the_chain(kinds, seed):
    """Outputs and every gradient, for any pattern of identities and other linear maps."""
    generator = torch.Generator().manual_seed(seed)

    def values():
        return [
            torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(len(kinds) + 1)
        ]

    x_, y_ = values(), values()
    weights = [torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in kinds]
    coarse = [None if kind == "identity" else linear(weight) for kind, weight in zip(kinds, weights, strict=True)]
    chain = parareal.corrections(x_, y_, [F or (lambda r: r) for F in coarse])[-1]
    reduced = parareal.reduction(x_, y_, coarse)
    assert close(reduced, chain)
    ours, theirs = (torch.autograd.grad(z.square().sum(), [*x_[1:], *y_]) for z in (reduced, chain))
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_reduction_adds_in_pairs():
    """Its depth is logarithmic: 8 differences, 3 additions deep, and one more for z_1."""

    class Depth(int):
        def __add__(self, other):
            return Depth(max(int(self), int(other)) + 1)

        def __sub__(self, other):
            return self

    assert parareal.reduction([Depth(0)] * 9, [Depth(0)] * 9, [None] * 8) == 4
