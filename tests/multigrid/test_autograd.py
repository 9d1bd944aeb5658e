"""The layers as one operation of autograd: what has which gradient, by which settings, and what a call leaves."""

import dataclasses
import weakref

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture
from pararealize.errors import MultigridError
from pararealize.multigrid.autograd import KeptStates, LayerPropagation
from pararealize.multigrid.solver.convergence import Convergence
from pararealize.multigrid.solver.hierarchy import make_hierarchy
from pararealize.multigrid.solver.layers import find_layers
from pararealize.multigrid.solver.propagators import TimeStep
from pararealize.multigrid.solver.settings import Settings
from tests.chains import F64


class Conditioned(nn.Module):
    """Blocks that read two conditioning values besides, which may be one tensor."""

    def __init__(self, depth: int = 6, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, u: Tensor, a: Tensor, b: Tensor) -> Tensor:
        for layer in self.layers:
            u = u + 0.3 * torch.tanh(layer(u) * a + b)
        return u


def prepared(**settings) -> tuple[Conditioned, LayerPropagation]:
    """A network, and the propagation through its layers with as many iterations as intervals."""
    torch.manual_seed(0)
    model = Conditioned().double()
    layers = find_layers(capture(model, tuple(torch.randn(3, 4, dtype=F64) for _ in range(3))))
    chosen = Settings(**{"forward_iterations": 3, "backward_iterations": 3, **settings})
    return model, LayerPropagation(
        rows=[TimeStep(model, layer) for layer in layers.layers],
        hierarchy=make_hierarchy(layers.fixed, 2, 2),
        settings=lambda: chosen,
        states=KeptStates(),
        convergence=Convergence(),
        serial=False,
    )


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((value * torch.linspace(-1, 1, 12, dtype=F64).view(3, 4)).sum(), inputs))


def test_a_gradient_of_the_gradient_is_refused_also_where_nothing_in_it_requires_one() -> None:
    """The loss's own gradient is a constant here, and the layers' gradient is none all the same."""
    _, propagate = prepared()
    u, a, b = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(3))
    value = propagate(u, [a, b])
    (gradient,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    (plain,) = torch.autograd.grad(propagate(u, [a, b]).sum(), u)
    assert torch.equal(gradient, plain)
    with pytest.raises(MultigridError, match=r"cannot be differentiated again.*penalty"):
        (value.mean() + gradient.square().sum()).backward()


def test_u_contexts_and_parameters_have_the_serial_network_s_gradients() -> None:
    model, propagate = prepared()
    u, a, b = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(3))
    inputs = [u, a, b, *model.parameters()]
    ours, theirs = gradients(propagate(u, [a, b]), inputs), gradients(model(u, a, b), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_a_tensor_that_is_two_contexts_has_its_gradient_once() -> None:
    model, propagate = prepared()
    u, a = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(gradients(propagate(u, [a, a]), [u, a]), gradients(model(u, a, a), [u, a]))


def test_contexts_keep_their_own_graphs() -> None:
    """What the contexts were computed from is differentiated by autograd, once, behind the layers."""
    model, propagate = prepared()
    u, w = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(2))
    ours = gradients(propagate(u, [w.exp(), w.sin()]), [u, w])
    torch.testing.assert_close(ours, gradients(model(u, w.exp(), w.sin()), [u, w]))


def test_without_anything_to_differentiate_there_is_no_graph() -> None:
    model, propagate = prepared()
    u, a, b = (torch.randn(3, 4, dtype=F64) for _ in range(3))
    with torch.no_grad():
        assert not propagate(u, [a, b]).requires_grad
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert not propagate(u, [a, b]).requires_grad
    assert propagate(u, [a.requires_grad_(), b]).requires_grad
    assert [norms.backward for norms in propagate.convergence] == [[], [], []]


def test_the_adjoint_solve_asks_for_the_settings_of_the_moment() -> None:
    model, propagate = prepared()
    current = Settings(forward_iterations=3, backward_iterations=1)
    propagate.settings = lambda: current
    u, a, b = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(3))
    value = propagate(u, [a, b])
    coarse = torch.autograd.grad(value.sum(), u, retain_graph=True)[0]
    current = dataclasses.replace(current, backward_iterations=3)
    exact = torch.autograd.grad(value.sum(), u)[0]
    (expected,) = torch.autograd.grad(model(u, a, b).sum(), u)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-13)
    assert not torch.allclose(coarse, expected, rtol=1e-3)
    assert len(propagate.convergence[-1].backward) == 3


def test_a_backward_that_keeps_no_graph_frees_those_of_the_layers() -> None:
    _, propagate = prepared()
    values: list[weakref.ref[Tensor]] = []

    def watched(*args: Tensor, piece=propagate.rows[2].f) -> Tensor:
        k = piece(*args)
        values.append(weakref.ref(k))
        return k

    propagate.rows[2].f = watched
    u, a, b = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(3))
    value = propagate(u, [a, b])
    value.sum().backward(retain_graph=True)
    assert any(k() is not None for k in values)
    value.sum().backward()
    assert all(k() is None for k in values)


@pytest.mark.parametrize("serial", [False, True])
def test_only_a_solve_leaves_states_and_norms(serial: bool) -> None:
    model, propagate = prepared(warm_start=True)
    propagate.serial = serial
    u, a, b = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(3))
    ours = propagate(u, [a, b])
    torch.testing.assert_close(ours, model(u, a, b))
    ours.sum().backward()
    assert len(propagate.convergence) == (not serial)
    assert set(propagate.states) == (set() if serial else {"forward", "backward"})
    if not serial:
        assert [len(points) for points in propagate.states.values()] == [4, 4]
        assert not any(point.requires_grad for points in propagate.states.values() for point in points)


def test_states_of_another_shape_are_passed_over() -> None:
    model, propagate = prepared(warm_start=True, forward_iterations=1)
    u, a, b = (torch.randn(3, 4, dtype=F64) for _ in range(3))
    for _ in range(4):
        value = propagate(u, [a, b])
    torch.testing.assert_close(value, model(u, a, b))  # one correction a call adds up
    propagate(u[:2], [a[:2], b[:2]])
    assert all(len(point) == 2 for point in propagate.states["forward"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_call_without_gradients_has_no_part_in_warm_starts(mode) -> None:
    _, propagate = prepared(warm_start=True, forward_iterations=1)
    u, a, b = (torch.randn(3, 4, dtype=F64) for _ in range(3))
    with mode():
        cold = propagate(u, [a, b])
    for _ in range(2):
        propagate(u, [a, b]).sum().backward()
    before = dict(propagate.states)
    with mode():
        assert torch.equal(propagate(u, [a, b]), cold)
        propagate(-u, [a, b])
    assert all(propagate.states[way] is points for way, points in before.items())
    propagate(u, [a, b]).sum().backward()


def test_states_of_other_types_are_dropped() -> None:
    """Also where u itself has the same type, and those behind it have not."""
    model, propagate = prepared(warm_start=True, forward_iterations=1)
    u, a, b = (torch.randn(3, 4) for _ in range(3))
    model.float()
    cold = propagate(u, [a, b])
    assert not torch.equal(propagate(u, [a, b]), cold)
    with torch.autocast("cpu", torch.bfloat16):
        propagate(u, [a, b]).sum().backward()
    assert torch.equal(propagate(u, [a, b]), cold)
