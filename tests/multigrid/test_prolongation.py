"""Deeper networks: the same total time, weights on the line between, and the refinement of a flow converges."""

import copy
import io
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize import layer_parallel, prolong
from pararealize.errors import GuardError, ModelError, MultigridError, RecordingWarning
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


class Layers(nn.Module):
    """Blocks x + f(x) with two linear layers, what they give scaled up for long inputs."""

    def __init__(self, norm: Callable[[], nn.Module] = nn.Identity, drop: float = 0.0) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.b = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.norms, self.drop = nn.ModuleList(norm() for _ in range(3)), drop

    def forward(self, u: Tensor) -> Tensor:
        if u.shape[1] > 4:
            u = 10 * u
        for a, b, norm in zip(self.a, self.b, self.norms, strict=True):
            u = u + F.dropout(b(torch.tanh(a(norm(u)))), self.drop, self.training)
        return u


def test_inputs_outside_the_guards_are_recorded_anew() -> None:
    model, long = Layers(), torch.randn(2, 6, 3)
    deep, other = prolong(model, 2, torch.randn(2, 4, 3)), prolong(model, 2, long)
    for net in (deep, copy.deepcopy(deep)):
        with torch.no_grad():
            net.a[0].weight.mul_(2)
            net.get_submodule("deeper.1.a.0").weight.mul_(2)
            other.load_state_dict(net.state_dict())
        with pytest.warns(RecordingWarning, match="Layers was recorded anew for u"):
            assert torch.equal(net(long), other(long))
    net(long).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(GuardError):
        layer_parallel(deep, coarsening=2, example_inputs=torch.randn(2, 4, 3))(long)


def test_hooks_of_the_model_itself_run_once_a_call() -> None:
    model, x, calls = Layers(), torch.randn(2, 4, 3), []
    plain = prolong(model, 2, x)
    model.register_forward_hook(lambda module, args, output: (calls.append(module), output * 2)[1])
    deep = prolong(model, 2, x)
    calls.clear()
    assert torch.equal(deep(x), 2 * plain(x))
    assert calls == [deep]


def test_it_is_no_pickle_and_a_copy_follows_its_mode() -> None:
    deep, x = prolong(Layers(drop=0.5), 2, torch.randn(2, 4, 3)), torch.randn(2, 4, 3)
    with pytest.raises(ModelError, match=r"a prolonged module is saved by its parameters, not pickled"):
        torch.save(deep, io.BytesIO())
    copied = copy.deepcopy(deep)
    assert not torch.equal(copied(x), copied(x))
    assert torch.equal(copied.eval()(x), copied(x))
    assert torch.equal(copied(x), deep.eval()(x))


def test_tied_tensors_stay_tied_and_the_others_do_not() -> None:
    model = Layers()
    for layer in model.a:
        layer.weight = model.a[0].weight  # by all blocks
    model.b[0].bias = model.a[0].bias  # within one
    weight = model.a[0].weight.detach().clone()
    for weights in ("copy", "linear"):
        deep = prolong(model, 3, torch.randn(2, 4, 3), weights=weights)
        names: dict[int, list[str]] = {}
        for name, parameter in deep.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        tied = sorted(sorted(each) for each in names.values() if len(each) > 1)
        own = [[f"{top}a.0.bias", f"{top}b.0.bias"] for top in ("", "deeper.1.", "deeper.2.")]
        assert [each for each in tied if len(each) == 2] == own
        assert len([each for each in tied if len(each) == 9]) == len(tied) - 3 == 1
        assert torch.equal(deep.a[0].weight, weight)
        expected = torch.lerp(model.a[0].bias, model.a[1].bias, 1 / 3) if weights == "linear" else model.a[0].bias
        torch.testing.assert_close(deep.get_submodule("deeper.1.a.0").bias, expected)


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training)


def test_copies_have_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    model, x = Layers(FunctionalNorm), torch.randn(32, 3)
    theirs = Layers(lambda: nn.BatchNorm1d(3, affine=False))
    theirs.load_state_dict(model.state_dict(), strict=False)
    deep, expected = prolong(model, 2, x), prolong(theirs, 2, x)
    for _ in range(3):
        torch.testing.assert_close(deep(x), expected(x))
    assert [name for name in deep.state_dict() if name.endswith("mean")] == [
        f"{top}norms.{n}.mean" for top in ("", "deeper.1.") for n in range(3)
    ]
    torch.testing.assert_close(deep.eval()(x), expected.eval()(x))


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
