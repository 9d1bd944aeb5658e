"""Deeper networks: the same total time, weights on the line between, and the refinement of a flow converges."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from pararealize import layer_parallel, prolong
from pararealize.errors import MultigridError
from tests.chains import Chains, example
from tests.models import MaskedTransformer, SmallResNet


class Smooth(nn.Module):
    """n steps of size 1/n along one smooth curve of weights: refined, it converges to the flow."""

    def __init__(self, steps: int, *, post: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(steps))
        self.gains = nn.ParameterList(nn.Parameter(torch.full((3,), 1.0 + i / steps)) for i in range(steps))
        self.h, self.post = 1 / steps, post
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, 3, 3, generator=generator)
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                layer.weight.copy_(a + i / steps * b)
                layer.bias.fill_(i / steps)

    def forward(self, u: Tensor) -> Tensor:
        for layer, gain in zip(self.layers, self.gains, strict=True):
            u = u + self.h * gain * torch.tanh(layer(u))
            u = torch.relu(u) if self.post else u
        return u


@pytest.mark.parametrize("post", [False, True])
def test_linear_weights_are_those_of_the_finer_network(post: bool) -> None:
    """Interpolated on a line of weights, n steps become 2n, in all but the last step."""
    coarse, fine, x = Smooth(6, post=post).double(), Smooth(12, post=post).double(), example()
    deep = prolong(coarse, 2, x)
    state, expected = deep.state_dict(), fine.state_dict()
    for i in range(6):
        for name in ("weight", "bias"):
            ours, theirs = state[f"layers.{i}.{name}"], expected[f"layers.{2 * i}.{name}"]
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
            if i < 5:
                ours, theirs = state[f"deeper.1.layers.{i}.{name}"], expected[f"layers.{2 * i + 1}.{name}"]
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        fine.layers[11].load_state_dict(fine.layers[10].state_dict())
        fine.gains[11].copy_(fine.gains[10])
    torch.testing.assert_close(deep(x), fine(x), rtol=1e-6, atol=1e-7)


def test_deeper_is_closer_to_the_flow_than_it_is_different() -> None:
    """The total time stays: what changes is the error of Euler's method, which halves."""
    x = example()
    nets = [prolong(Smooth(8).double(), m, x, weights="copy") for m in (2, 4, 8, 16)]
    outputs = [net(x).detach() for net in (Smooth(8).double(), *nets)]
    steps = [float((b - a).norm()) for a, b in itertools.pairwise(outputs)]
    ratios = [a / b for a, b in itertools.pairwise(steps)]
    assert all(1.7 < ratio < 2.4 for ratio in ratios)


@pytest.mark.parametrize("weights", ["linear", "copy"])
def test_networks_of_every_kind_can_be_deepened_trained_and_solved(weights) -> None:
    cases = [
        (SmallResNet(3), torch.randn(2, 3, 8, 8), 5),
        (MaskedTransformer(3), torch.randint(0, 11, (2, 7)), 3),
        (Chains((3, 4), (4, 5), norm=True), torch.randn(5, 3), 7),
    ]
    for model, x, blocks in cases:
        before = copy.deepcopy(model.state_dict())
        deep = prolong(model, 3, x, weights=weights)
        assert {name: value.shape for name, value in before.items()}.items() <= {
            name: value.shape for name, value in deep.state_dict().items()
        }.items()
        net = layer_parallel(deep, 2, 3, example_inputs=x)
        assert sum(not fixed for fixed in net.structure.fixed) == 3 * blocks
        net(x).square().mean().backward()
        assert all(p.grad is not None for name, p in net.named_parameters() if "deeper" in name)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_twice_and_again_a_copy() -> None:
    x = example()
    twice = prolong(prolong(Smooth(3).double(), 2, x), 2, x)
    assert {name.split(".")[0] for name in twice.state_dict()} == {"layers", "gains", "deeper", "deeper2"}
    assert len([name for name in twice.state_dict() if name.endswith("weight")]) == 12
    assert torch.equal(copy.deepcopy(twice)(x), twice(x))


def test_weights_shared_by_blocks_stay_shared() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, u: Tensor) -> Tensor:
            for _ in range(4):
                u = u + 0.25 * torch.tanh(self.layer(u))
            return u

    deep = prolong(Same(), 2, torch.randn(2, 3))
    assert list(deep.state_dict()) == ["layer.weight", "layer.bias"]


def test_the_mode_stays() -> None:
    model = Chains((3,), (4,), norm=True).eval()
    deep = prolong(model, 2, torch.randn(2, 3))
    assert not any(module.training for module in deep.modules())
    assert all(module.training for module in prolong(model.train(), 2, torch.randn(2, 3)).modules())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"factor": 1}, "factor is 1"),
        ({"factor": 2.0}, "factor is 2.0"),
        ({"weights": "cubic"}, "weights is 'cubic'"),
    ],
)
def test_refusals(arguments, words: str) -> None:
    with pytest.raises(MultigridError, match=words):
        prolong(Chains(), **{"example_inputs": torch.randn(2, 3), **arguments})
    with pytest.raises(MultigridError, match="no chain of residual blocks"):
        prolong(nn.Sequential(nn.Linear(3, 3)), example_inputs=torch.randn(2, 3))
