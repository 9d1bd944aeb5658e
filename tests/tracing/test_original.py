"""What a converted network keeps of its original has no memory of its own, and computes with the network's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pararealize import pararealize
from pararealize.errors import RecordingWarning
from pararealize.tracing.module_copy import bare_tree, copy_model
from pararealize.tracing.original import Original


class Counted(nn.Sequential):
    """A root that runs its children in order, with a buffer and an argument of any number."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor, *more: Tensor, factor: Tensor | None = None) -> Tensor:
        y = super().forward(x) + self.shift
        for value in more:
            y = y + value
        return y if factor is None else y * factor


def network() -> tuple[nn.Module, Original]:
    tree, _ = copy_model(Counted(), {})
    original, tree = Original(tree, ()), bare_tree(tree)
    tree._modules["adapters"] = nn.Linear(1, 1)  # which a Sequential would run, were it a child of the original's
    return tree, original


X = torch.randn(4, 3)


def output(original: Original, *args: Tensor, **kwargs: Tensor) -> Tensor:
    captured = original.capture(args, kwargs)
    y = captured.graph_module.eval()(*captured.example.tensors.values())
    assert isinstance(y, Tensor)
    return y


def test_it_has_the_networks_weights_whatever_becomes_of_them() -> None:
    net, original = network()
    net.eval()
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(3)
    expected = nn.functional.batch_norm(X @ net.get_parameter("0.weight").T + net.get_parameter("0.bias"),
                                        torch.zeros(3), torch.ones(3)) + 1  # fmt: skip
    torch.testing.assert_close(output(original, X), expected)
    net.double()
    assert output(original, X.double()).dtype == torch.float64


def test_recording_leaves_the_network_alone() -> None:
    net, original = network()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    captured = original.capture((X,), {})
    assert captured.model.get_parameter("0.weight").data_ptr() == net.get_parameter("0.weight").data_ptr()
    assert captured.model.get_buffer("1.running_mean").data_ptr() != net.get_buffer("1.running_mean").data_ptr()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_arguments_by_place_and_by_name() -> None:
    _, original = network()
    y = output(original, X)
    torch.testing.assert_close(output(original, X, X, X), y + 2 * X)
    torch.testing.assert_close(output(original, X, factor=2 * torch.ones(3)), 2 * y)


def test_a_deep_copy_goes_with_the_networks() -> None:
    net, original = network()
    memo: dict[int, object] = {}
    twin = copy.deepcopy(net, memo)
    other = copy.deepcopy(original, memo)
    with torch.no_grad():
        twin.get_parameter("0.bias").add_(1)
    twin.eval(), net.eval()
    torch.testing.assert_close(output(other, X), output(original, X) + 1 / (1 + 1e-5) ** 0.5)


def test_without_memory() -> None:
    _, original = network()
    captured = original.capture((X,), {}, device=torch.device("meta"))
    assert all(tensor.is_meta for tensor in (*captured.model.parameters(), *captured.model.buffers()))


def test_hooks_of_the_root_are_the_networks() -> None:
    model = Counted()
    model.register_forward_hook(lambda *_: torch.zeros(1))
    tree, _ = copy_model(model, {})
    assert output(Original(tree, ()), X).shape == (4, 3)


def test_hooks_of_the_backward_pass_do_not_see_the_check_of_a_new_recording() -> None:
    """A hook that kept gradients was called with those of a comparison, in a forward pass of eval mode."""

    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + torch.tanh(layer(x)) * (2 if x.shape[1] > 4 else 3)
            return x

    seen = []
    model = Long()
    model.layers[1].register_full_backward_hook(lambda *_: seen.append("gradient"))
    net = pararealize(model, n=1, example_inputs=torch.randn(2, 6, 4))
    seen.clear()
    with pytest.warns(RecordingWarning, match="recorded anew"):
        y = net(torch.randn(2, 3, 4))
    assert not seen
    y.sum().backward()
    assert seen == ["gradient"]
