"""A function as two graphs: the same values and gradients, whatever is done between replays; on a double of CUDA."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pararealize.errors import CaptureError
from pararealize.network.local.cuda_graph import GraphedFunction
from tests.cuda_double import Machine, cuda_on_the_cpu

X = torch.randn(3, 4)


def captured(
    machine: Machine, function: Callable[..., Any], *example: Tensor, weights: Any = (), **options: Any
) -> GraphedFunction:
    """The parameters stand for themselves."""
    return GraphedFunction(function, example, [(p, p) for p in weights], stream=machine.make_stream(), **options)  # type: ignore[arg-type]


def test_values_and_gradients_are_those_of_the_function() -> None:
    weight, x = nn.Parameter(torch.randn(4, 4)), X.clone().requires_grad_()

    def function(x: Tensor, factor: Tensor) -> dict[str, Any]:
        return {"y": torch.tanh(x @ weight) * factor, "sizes": [x.shape[0], None], "index": x.argmax(1)}

    with cuda_on_the_cpu() as machine:
        graphed = captured(machine, function, x, torch.ones(4), weights=[weight])
        assert weight.grad is None
        for _ in range(3):
            x, factor = torch.randn(3, 4, requires_grad=True), torch.randn(4)
            ours, theirs = graphed(x, factor), function(x, factor)
            assert torch.equal(ours["y"], theirs["y"])
            assert torch.equal(ours["index"], theirs["index"])
            assert not ours["index"].requires_grad
            assert ours["sizes"] == [3, None]
            expected = torch.autograd.grad(theirs["y"].square().sum(), [x, weight])
            found = torch.autograd.grad(ours["y"].square().sum(), [x, weight])
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert [graph.replays for graph in machine.graphs] == [3, 3]


def test_backward_forks_to_the_branches_and_joins_them() -> None:
    """Autograd runs a backward on the stream of its forward, which is emulated here for one operation."""
    with cuda_on_the_cpu() as machine:
        branch = machine.make_stream()

        class OnBranch(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * 2

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                with machine.stream(branch):
                    return gradient * 2

        x = X.clone().requires_grad_()
        graphed = captured(machine, OnBranch.apply, x, branches=[branch])
        graphed(x).sum().backward()
        assert torch.equal(x.grad, torch.full_like(X, 2))  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="not forked from the capturing stream"):
            captured(machine, OnBranch.apply, x)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_may_be_accumulated(to_none: bool) -> None:
    """Autograd hands the graphs' own memory to ``.grad``, and the next replay overwrites it."""
    weight, batches = nn.Parameter(torch.randn(4)), torch.randn(6, 3, 4)
    optimiser = torch.optim.SGD([weight], lr=0.0)
    with cuda_on_the_cpu() as machine:
        graphed = captured(machine, lambda x: (x * weight).sin(), X, weights=[weight])
        for a, b in batches.view(3, 2, 3, 4):
            optimiser.zero_grad(set_to_none=to_none)
            graphed(a).sum().backward()
            graphed(b).sum().backward()
            expected = sum(torch.autograd.grad((x * weight).sin().sum(), weight)[0] for x in (a, b))
            assert torch.allclose(weight.grad, expected)  # type: ignore[arg-type]


def test_two_gradients_never_share_memory() -> None:
    """Of ``a + b``, autograd gives both the same tensor; changing one ``.grad`` in place must not change the other."""
    a, b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))
    with cuda_on_the_cpu() as machine:
        graphed = captured(machine, lambda x: x * 1 + (a + b), X, weights=[a, b])
        graphed(X).sum().backward()
        assert a.grad is not None
        a.grad.mul_(7)
        assert torch.equal(b.grad, torch.ones(3, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("between", ["forward", "forward without gradients", "backward", "release"])
def test_backward_is_refused_when_its_memory_has_been_used_again(between: str) -> None:
    weight = nn.Parameter(torch.randn(4))
    with cuda_on_the_cpu() as machine:
        graphed = captured(machine, lambda x: (x * weight).sin(), X, weights=[weight])
        loss = graphed(X).sum()
        match between:
            case "forward":
                graphed(X)
            case "forward without gradients":
                with torch.no_grad():
                    graphed(X)
            case "backward":
                loss.backward(retain_graph=True)
            case "release":
                graphed.release()
                assert all(graph.is_reset for graph in machine.graphs)
        with pytest.raises(CaptureError, match="holds one step at a time"):
            loss.backward()


def test_a_function_may_work_in_place_and_leave_parameters_unused() -> None:
    weight, unused = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
    with cuda_on_the_cpu() as machine:
        graphed = captured(
            machine, lambda x: x.mul_(2).relu_() * weight, X.clone().requires_grad_(), weights=[weight, unused]
        )
        x = X.clone().requires_grad_()
        graphed(x).sum().backward()
        assert torch.equal(weight.grad, (2 * X).relu().sum(0))  # type: ignore[arg-type]
        assert unused.grad is None
        assert torch.equal(x, X)


def test_without_backward_one_graph_is_enough() -> None:
    weight = nn.Parameter(torch.randn(4))
    with cuda_on_the_cpu() as machine:
        graphed = captured(machine, lambda x: x * weight, X.clone().requires_grad_(), weights=[weight], backward=False)
        assert torch.equal(graphed(X), X * weight)
        assert not graphed(X).requires_grad
        assert len(machine.graphs) == 1
        with torch.no_grad():
            weight.mul_(3)  # in place, as optimisers do
        assert torch.equal(graphed(X), X * weight)


def test_what_it_returns_must_be_made_of_tensors() -> None:
    with cuda_on_the_cpu() as machine, pytest.raises(CaptureError, match="returns a set"):
        captured(machine, lambda x: {1, 2}, X)


def deep(depth: int) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.Tanh())))


def test_gradients_may_stay_where_the_graph_adds_them() -> None:
    """As autograd adds them, whatever stands in ``.grad``; and what that asks of the host does not grow."""
    operations = []
    for depth in (20, 60):
        model, unused = deep(depth), nn.Parameter(torch.zeros(1))
        twin, memory = copy.deepcopy(model), dict[nn.Parameter, Tensor]()
        with cuda_on_the_cpu() as machine:
            pairs = [(p, p) for p in (*model.parameters(), unused)]
            graphed = GraphedFunction(
                model, [X], pairs, stream=machine.make_stream(),
                gradient_of=lambda p, memory=memory: memory.setdefault(p, torch.zeros_like(p.detach())),
            )  # fmt: skip
            for step in range(4):
                if step == 1:
                    model.zero_grad(), twin.zero_grad()
                if step == 3:  # gradients of the caller's own
                    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
                x = torch.randn(3, 4)
                graphed(x).sum().backward(), twin(x).sum().backward()
                for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                    torch.testing.assert_close(p.grad, q.grad)
                    assert p.grad is memory[p]
            assert unused.grad is None
            seen = Counter[str]()
            with mock.patch("tests.cuda_double.Graph.replay"):
                sys.setprofile(lambda frame, event, argument, seen=seen: seen.update([event]))
                try:
                    graphed(x).sum().backward()
                finally:
                    sys.setprofile(None)
            operations.append(seen["call"] + seen["c_call"])
    assert operations[0] == operations[1]
