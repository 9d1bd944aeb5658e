"""The recorder writes down what happened, in the order in which it happened."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.tracing.front_end import capture
from tests.models import Branching


def test_a_changed_value_is_read_after_the_change() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            view = y[:, :2]
            view.mul_(2)
            y[:, 3] = 1.0
            z = y + 1
            y += z
            return y * z

    model, x = InPlace(), torch.randn(3, 4)
    assert torch.equal(capture(model, x).graph_module(x), model(x))


def test_outputs_in_a_class_of_their_own() -> None:
    import collections

    pair = collections.namedtuple("pair", ["first", "second"])

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, scale: float = 1.0) -> Any:
            y = self.linear(x)
            return pair(y * scale, y.sum())

    captured = capture(Two(), {"x": torch.randn(2, 4), "scale": 3.0})
    result = captured.graph_module(torch.ones(2, 4))
    assert isinstance(result, pair)
    assert torch.equal(result.first, Two.forward(captured.model, torch.ones(2, 4), 3.0).first)


def test_a_small_submodule_that_cannot_be_read_is_one_node() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4), Branching())
    captured = capture(model, torch.randn(2, 4))
    assert list(captured.opaque) == ["3"]
    for sign in (1.0, -1.0):
        x = sign * torch.ones(3, 4)
        assert torch.equal(captured.graph_module(x), model(x))


def test_a_custom_autograd_function_keeps_its_gradient() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Reversed.apply(x)

    model = nn.Sequential(nn.Linear(3, 3), Layer(), nn.Linear(3, 3))
    captured = capture(model, torch.randn(2, 3))
    assert list(captured.opaque) == ["1"]
    x = torch.randn(2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    (got,) = torch.autograd.grad(captured.graph_module(x).sum(), x)
    assert torch.equal(expected, got)


def test_attention_is_read_on_every_device() -> None:
    """In eval mode, torch's fused attention would return another tuple, and the layer would become opaque."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x, need_weights=False)[0]

    captured = capture(nn.Sequential(Attending(), Attending()), torch.randn(2, 3, 4))
    assert captured.opaque == {}
    assert torch.backends.mha.get_fastpath_enabled()


def test_gradients_switched_off_around_a_tensor_of_the_model() -> None:
    """The region is part of the graph, whether or not a gradient would flow without it."""

    class Still(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.linear, self.kind = nn.Linear(4, 4), kind
            self.weight = nn.Parameter(torch.randn(4))
            self.register_buffer("buffer", torch.randn(4))
            self.constant = torch.randn(4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                factor = getattr(self, self.kind) * 2
            return self.linear(x) * factor

    x = torch.randn(2, 4)
    for kind in ("buffer", "constant", "weight"):
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), Still(kind))
        captured = capture(model, x)
        assert captured.opaque == {}
        assert torch.equal(captured.graph_module(x), model(x))
        captured.graph_module(x).sum().backward()
        assert model[4].weight.grad is None


def test_values_know_whether_parameters_made_them() -> None:
    """What is made of buffers and constants alone is no parameter's value, whatever reads it."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))
            self.register_buffer("buffer", torch.randn(4))
            self.constant = torch.randn(4)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.exp(self.weight) + torch.cos(self.buffer) + torch.sin(self.constant)

    nodes = {node.name: node.meta.get("trainable") for node in capture(Mixed(), torch.randn(2, 4)).graph.nodes}
    assert (nodes["exp"], nodes["cos"], nodes["sin"]) == (True, False, False)
    assert (nodes["weight"], nodes["buffer"], nodes["_constant_0"]) == (True, False, False)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


RESULTS: list[Tensor] = []


class Interrupted(nn.Module):
    """While its forward runs, another thread does something, and is waited for."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(4, 4), other

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=self.other)
        thread.start()
        thread.join()
        return self.linear(x)


def test_other_threads_are_not_recorded() -> None:
    """They apply custom functions, switch autocast and call modules as ever, those of the recorded model too."""
    real = nn.Linear(4, 4)

    def other() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            RESULTS.append(Reversed.apply(real(torch.ones(2, 4, requires_grad=True))))

    captured = capture(nn.Sequential(nn.Linear(4, 4), Interrupted(other), nn.Linear(4, 4)), torch.randn(2, 4))
    assert captured.opaque == {}
    assert len([node for node in captured.graph.nodes if node.op not in ("placeholder", "output")]) == 3
    assert {result.dtype for result in RESULTS} == {torch.bfloat16}


def model_of() -> nn.Module:
    return nn.Sequential(*(Interrupted(lambda: None) for _ in range(6)))


def test_two_threads_can_record_at_once() -> None:
    x = torch.randn(2, 4)
    call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
    captures: list[Any] = []
    threads = [threading.Thread(target=lambda: captures.append(capture(model_of(), x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(captures) == 4
    expected = [node.target for node in capture(model_of(), x).graph.nodes]
    assert all([node.target for node in captured.graph.nodes] == expected for captured in captures)
    assert nn.Module.__call__ is call
    assert torch.autograd.Function.__dict__["apply"] is apply
