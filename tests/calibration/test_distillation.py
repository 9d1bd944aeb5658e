"""Short trainings: the error falls, the last layer is solved for, batch norms measure what they see."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from pararealize.analysis.space import Space
from pararealize.calibration.distillation import Pair, distil, last_layer, measure_norms, solve_last
from pararealize.coarse.units import CoarseBlock, depthwise_units, paper_units
from pararealize.errors import CalibrationError

IMAGE, SMALL = Space(shape=(4, 8, 8), channel=0), Space(shape=(6, 4, 4), channel=0)


def block(seed: int = 0) -> CoarseBlock:
    torch.manual_seed(seed)
    return CoarseBlock(IMAGE, SMALL, paper_units(IMAGE, SMALL, 2)).eval()


def pairs(count: int = 3) -> list[Pair]:
    torch.manual_seed(7)
    teacher = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    xs = [torch.randn(16, 4, 8, 8) for _ in range(count)]
    return [Pair(x, (), teacher(x).tanh().detach()) for x in xs]


def error(module: nn.Module, data: list[Pair]) -> float:
    with torch.no_grad():
        return sum((module(x) - t).double().square().sum().item() for x, _, t, _ in data)


def test_training_reduces_the_error_and_nothing_else_changes() -> None:
    module, data = block(), pairs()
    modes = [part.training for part in module.modules()]
    inputs = [x.clone() for x, *_ in data]
    before = error(module, data)
    distil(module, data, steps=30, lr=1e-2, seed=0)
    measure_norms(module, data)
    assert error(module, data) < 0.5 * before
    assert [part.training for part in module.modules()] == modes
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(x, y) for x, (y, *_) in zip(inputs, data, strict=True))


@pytest.mark.parametrize("lr", [1e-2, float("inf")])
def test_gradients_of_the_caller_are_left_as_they_were(lr: float) -> None:
    """They were dropped."""
    module, data = block(), pairs()
    first, *others = module.parameters()
    first.grad = torch.ones_like(first)
    with contextlib.suppress(CalibrationError):
        distil(module, data, steps=3, lr=lr, seed=0)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(parameter.grad is None for parameter in others)


def test_one_seed_gives_one_result() -> None:
    states = []
    for seed in (0, 0, 1):
        module = block()
        distil(module, pairs(), steps=4, lr=1e-2, seed=seed)
        states.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Squares of errors and of gradients are smaller or larger than float16 has; bfloat16 rounds in the third digit."""
    data = [Pair(x.to(dtype), c, 300 * t.to(dtype)) for x, c, t, _ in pairs()]
    module = block().to(dtype)
    before = error(module, data)
    distil(module, data, steps=30, lr=1e-1, seed=0)
    measure_norms(module, data)
    trained = error(module, data)
    assert trained < 0.95 * before
    assert solve_last(module, lambda: data, ridge=1e-4)
    assert error(module, data) < trained


def test_the_last_layer_is_at_its_minimum() -> None:
    module, data = block().double(), [Pair(x.double(), c, t.double()) for x, c, t, _ in pairs()]
    measure_norms(module, data)
    assert solve_last(module, lambda: data, ridge=0.0)
    loss = sum((module(x) - t).square().sum() for x, _, t, _ in data)
    (gradient,) = torch.autograd.grad(loss, module.unit2.conv2.weight)
    (other,) = torch.autograd.grad(
        sum((module(x) - t).square().sum() for x, _, t, _ in data), module.unit2.conv1.weight
    )
    assert gradient.abs().max() < 1e-8 * other.abs().max()


@pytest.mark.parametrize("units", [paper_units(IMAGE, SMALL, 2), depthwise_units(IMAGE, SMALL, 2, 5)])
def test_units_have_a_last_layer(units: list[tuple[str, nn.Module]]) -> None:
    module = CoarseBlock(IMAGE, SMALL, units).eval()
    assert last_layer(module, torch.randn(2, 4, 8, 8)) is module.unit2.conv2


class Post(nn.Module):
    """Rectifies behind its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).relu()


class Twice(Post):
    """Applies one layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.linear(x))


@pytest.mark.parametrize("module", [Post(), Twice(), nn.Sequential(nn.Linear(3, 3), nn.Softplus()), nn.Identity()])
def test_where_the_last_layer_is_not_added_there_is_none(module: nn.Module) -> None:
    x = torch.randn(5, 3)
    assert last_layer(module, x) is None
    before = [p.clone() for p in module.parameters()]
    assert not solve_last(module, lambda: [Pair(x, (), x)], ridge=0.0)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_statistics_are_averages_over_all_pairs() -> None:
    norm = nn.BatchNorm1d(2, momentum=0.3).eval()
    data = [Pair(torch.randn(8, 2) + i, (), torch.zeros(8, 2)) for i in range(3)]
    measure_norms(norm, data)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x, *_ in data]).mean(0))
    assert (norm.momentum, norm.training) == (0.3, False)


def vectors(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).eval()


def test_a_pair_with_one_value_a_channel_is_left_out() -> None:
    torch.manual_seed(5)
    data = [Pair(x, (), x.tanh()) for x in (torch.randn(size, 3) for size in (8, 1, 8))]
    states = []
    for some in (data, [data[0], data[2]]):
        module = vectors()
        distil(module, some, steps=5, lr=1e-2, seed=0)
        assert measure_norms(module, some)
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    image = nn.BatchNorm2d(4).eval()  # one image has many
    assert measure_norms(image, [Pair(torch.randn(1, 4, 8, 8) + 3, (), torch.zeros(1))])
    assert float(image.running_mean.min()) > 2


def test_where_all_pairs_have_one_value_a_channel_norms_stay() -> None:
    torch.manual_seed(5)
    data = [Pair(x, (), x.tanh()) for x in (torch.randn(1, 3) for _ in range(4))]
    module = vectors()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    first = error(module, data)
    assert not measure_norms(module, data)
    distil(module, data, steps=20, lr=1e-2, seed=0)
    assert error(module, data) < first
    changed = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
    assert changed
    assert not [key for key in changed if "running" in key or "tracked" in key]


def test_frozen_parameters_stay() -> None:
    module = block()
    module.unit1.requires_grad_(False)
    before = module.unit1.conv1.weight.clone()
    distil(module, pairs(), steps=3, lr=1e-2, seed=0)
    assert torch.equal(module.unit1.conv1.weight, before)


def test_a_frozen_last_layer_is_not_solved_for() -> None:
    module = block()
    module.unit2.conv2.requires_grad_(False)
    before = module.unit2.conv2.weight.clone()
    assert not solve_last(module, pairs, ridge=1e-4)
    assert torch.equal(module.unit2.conv2.weight, before)


def test_a_loss_that_blows_up_is_an_error() -> None:
    with pytest.raises(CalibrationError, match=r"in step . of 9 of a distillation; pass a smaller lr than 1e\+30"):
        distil(block(), pairs(), steps=9, lr=1e30, seed=0)


def test_excluded_positions_influence_nothing() -> None:
    """The content of padding leaves the weights as they are, bit for bit."""
    torch.manual_seed(3)
    x, target, mask = torch.randn(4, 6, 3), torch.randn(4, 6, 3), torch.rand(4, 6) < 0.5
    weights = []
    for padding in (0.0, 7.0, 1e4):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        values = [torch.where(mask[..., None], value, padding) for value in (x, target)]
        data = [
            Pair(values[0], (), values[1], mask),
            Pair(values[0], (), values[1], mask & False),
        ]  # the last all padding
        distil(module, data, steps=6, lr=1e-2, seed=0)
        assert solve_last(module, lambda data=data: data[:1], ridge=1e-4)
        weights.append(torch.cat([parameter.flatten() for parameter in module.parameters()]).detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
