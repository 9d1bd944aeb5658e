"""Capture reads real forward passes, follows mode and batch size, leaves the model as found, and refuses the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Auxiliary, Branching, MaskedTransformer, SmallResNet, StochasticDepth
from torch import Tensor, nn

from pararealize.capture import capture
from pararealize.errors import CaptureError, ExampleError, ModelError


def outputs(model: nn.Module, graph: nn.Module, *inputs: Tensor) -> list[Any]:
    """What model and graph give for one random state."""
    results = []
    for network in (model, graph):
        torch.manual_seed(3)
        results.append(network(*inputs))
    return results


IDS = torch.randint(0, 11, (4, 7))
NETWORKS = {
    "convolutions": (SmallResNet(), torch.randn(4, 3, 8, 8)),
    "functional dropout and a mask": (MaskedTransformer(), IDS),
    "stochastic depth": (nn.Sequential(*(StochasticDepth() for _ in range(3))), torch.randn(4, 6)),
    "lstm": (nn.LSTM(3, 5, batch_first=True), torch.randn(4, 6, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("captured_in_training", [True, False])
def test_the_mode_is_followed_after_capture(name: str, training: bool, captured_in_training: bool) -> None:
    model, x = NETWORKS[name]
    model.train(captured_in_training)
    captured = capture(model, x)
    model.train(training)
    for rows in (x, x[:1] if not training else x[:3], torch.cat([x, x])):
        expected, got = outputs(model, captured.graph_module, rows)
        pairs = zip(*(torch.utils._pytree.tree_leaves(value) for value in (expected, got)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_mode_of_one_submodule_is_followed() -> None:
    model = MaskedTransformer(depth=2)
    captured = capture(model, IDS)
    model.train()
    model.layers[0].eval()
    assert torch.equal(*outputs(model, captured.graph_module, IDS))


def test_modules_stay_calls_with_qualified_names() -> None:
    captured = capture(SmallResNet(depth=1), torch.randn(2, 3, 8, 8))
    targets = [node.target for node in captured.graph.nodes if node.op == "call_module"]
    assert targets[:3] == ["conv", "layer1.0.conv1", "layer1.0.bn1"]
    assert targets[-1] == "fc"


def test_the_model_is_left_as_found() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
            self.calls: list[int] = []
            self.cache: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(1)
            self.cache = self.linear(x)
            return self.drop(self.norm(self.cache))

    model = Caching()
    model.norm.eval()
    model.linear.register_forward_hook(lambda module, args, output: output * 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    parameters = list(model.parameters())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    captured = capture(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert model.cache is None
    assert model.calls == []
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(value is mine for value, mine in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()
    model.eval()
    x = torch.randn(3, 4)
    assert torch.equal(captured.graph_module(x), model(x))


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


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(x.shape[0] * 2, -1).sum(1).view(x.shape[0], 2),
        lambda x: x + torch.arange(x.size(0)).view(-1, 1),
        lambda x: F.pad(x, (1, 1)),
        lambda x: x[: x.shape[0] // 1, 1:],
        lambda x: torch.cat([x.new_zeros(x.shape[0], 1), x], 1),
        lambda x: 2.0 - x / (1 + x**2) @ torch.eye(4),
        lambda x: torch.split(x, [1, 3], dim=1)[1] * x.mean(),
        lambda x: x.T.T + x.mT.mT,
        lambda x: torch.einsum("bi,bj->bij", x, x).flatten(1),
        lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    ],
)
def test_functions_and_sizes(function: Any) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.linear(x))

    model = Functional()
    captured = capture(model, torch.randn(2, 4))
    for rows in (1, 2, 5):
        x = torch.randn(rows, 4)
        assert torch.equal(captured.graph_module(x), model(x))


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
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return -gradient

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


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = SmallResNet()
    captured = capture(model, torch.empty(2, 3, 8, 8, device="meta"))
    assert captured.graph_module(torch.empty(5, 3, 8, 8, device="meta")).shape == (5, 3)


def test_refusals_name_fact_place_and_remedy() -> None:
    with pytest.raises(
        CaptureError, match=r"Branching.*models\.py:\d+ `if x.sum\(\) > 0:`.*values of a tensor.*leaf_modules"
    ):
        capture(Branching(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match=r"depends on train\(\)/eval\(\).*aux_logits=False"):
        capture(Auxiliary(), torch.randn(2, 4))
    with pytest.raises(ExampleError, match=r"SmallResNet does not accept.*x \(2, 4\) float32"):
        capture(SmallResNet(), torch.randn(2, 4))
    with pytest.raises(ExampleError, match=r"do not fit SmallResNet.forward\(x.*\).*missing a required argument: 'x'"):
        capture(SmallResNet(), {"y": torch.randn(2, 4)})
    with pytest.raises(ExampleError, match=r"first layer is Embedding; pass example_inputs"):
        capture(MaskedTransformer())
    with pytest.raises(ExampleError, match="is a list; only tensors and plain values"):
        capture(SmallResNet(), ([torch.randn(2, 3, 8, 8)],))
    with pytest.raises(ModelError, match="has no parameters"):
        capture(nn.ReLU(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match="leaf_modules names 'layer9'"):
        capture(SmallResNet(), torch.randn(2, 3, 8, 8), leaf_modules=["layer9"])


def test_a_wrong_graph_is_refused() -> None:
    """The last check: a value computed where no recorder can see it is found by running the graph."""
    hidden = [0.0]

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden[0] += 1.0
            return self.linear(x) * hidden[0]

    with pytest.raises(CaptureError, match=r"differs from the model in train mode with a batch of 2 by up to"):
        capture(Counting(), torch.randn(2, 4))


def test_inference_of_examples() -> None:
    assert capture(SmallResNet()).example.tensors["x"].shape == (2, 3, 224, 224)
    assert capture(nn.Sequential(nn.Linear(5, 2))).example.batch == 2
