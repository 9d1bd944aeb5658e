"""Output corrections of a window: found where they exist, written into the modules as fitted, never worse than none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.calibration.fitting import calibrate
from pararealize.calibration.held_out import HeldOut
from pararealize.calibration.interfaces import InterfaceRecord, Interfaces
from pararealize.calibration.window_corrections import fit_corrections
from tests.models import SmallResNet

DOUBLE = {"dtype": torch.float64}


class Additive(nn.Module):
    """``x + f(x)``; f is a linear layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class Scaled(nn.Module):
    """A factor a channel, and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.rand(width, **DOUBLE) / 2), nn.Parameter(torch.rand(width, **DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.bias


class Factors(nn.Linear):
    """A linear layer of low rank."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(width, width, **DOUBLE)
        with torch.no_grad():
            left, right = torch.randn(width, rank, **DOUBLE), torch.randn(rank, width, **DOUBLE)
            self.weight.copy_(0.3 * left @ right / rank)


class Chain(nn.Module):
    """Residual blocks, then a linear layer."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Additive, layers))
        self.head = nn.Linear(width, 2, **DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def chain(kind: str, width: int = 6, depth: int = 4) -> Chain:
    torch.manual_seed(0)
    make = {
        "scale": lambda: Scaled(width),
        "low-rank": lambda: Factors(width, 3),
        "dense": lambda: Factors(width, width),
    }
    return Chain([make[kind]() for _ in range(depth)], width)


def converted(model: nn.Module, x: Tensor, coarse: str, windows: int = 2) -> PararealModule:
    return pararealize(model, 2, windows=windows, example_inputs=x, coarse=coarse, source="stem")


@pytest.mark.parametrize("needs, coarse", [("scale", "scale"), ("low-rank", "low-rank:3"), ("dense", "dense")])
@pytest.mark.parametrize("shape", [(40, 6), (20, 5, 6)])
def test_what_a_linear_network_needs_is_found(needs: str, coarse: str, shape: tuple[int, ...]) -> None:
    """Of two affine blocks side by side the sum misses A_2 A_1 w and a constant: a linear map of d_1, of A_2's rank."""
    model, generator = chain(needs), torch.Generator().manual_seed(1)
    batches = [torch.randn(shape, generator=generator, **DOUBLE) for _ in range(5)]
    net = converted(model, batches[0], coarse)
    calibration = calibrate(net, batches)
    x = torch.randn(shape, generator=generator, **DOUBLE)
    torch.testing.assert_close(net(x), model(x), rtol=1e-6, atol=1e-6)
    assert calibration.stage("before").output > 1e-2
    assert all(choice.used and choice.errors[choice.name] < 1e-6 for choice in calibration.corrections)
    if needs == "low-rank":
        narrow = converted(model, batches[0], "low-rank:1")
        assert calibrate(narrow, batches).corrections[0].errors["low-rank:1"] > 1e-3


@pytest.mark.parametrize("coarse", ["scale", "low-rank:3", "dense"])
def test_reported_errors_are_those_of_the_network(coarse: str) -> None:
    """Convolutions, a new space in the midst of a window, blocks that work in place on what corrections read."""
    torch.manual_seed(0)
    batches = [torch.randn(8, 3, 8, 8, **DOUBLE) for _ in range(6)]
    model = SmallResNet(depth=4).double().eval()
    net = pararealize(model, 3, windows=2, example_inputs=batches[0], coarse=coarse)
    assert net.plan.corrections
    calibration = calibrate(net, batches[:5], test=batches[5:], renew_statistics=False)
    interfaces = Interfaces(net.eval())
    values = interfaces.in_sequence(batches[5])
    torch.testing.assert_close(interfaces.result(values), net(batches[5]))
    for choice in calibration.corrections:
        window = interfaces.windows[choice.m - 1]
        true = values.true[window.segments[-1].index]
        error = (interfaces.end(values, window) - true).norm() / true.norm()
        assert choice.errors[choice.name if choice.used else "none"] == pytest.approx(float(error), rel=1e-6)
        assert error <= choice.errors["none"] * (1 + 1e-9)


def test_they_are_left_where_they_are_worse_than_none_and_where_they_are_frozen() -> None:
    torch.manual_seed(0)
    model = chain("dense")
    with torch.no_grad():
        for block in model.blocks:
            block.layer.weight.zero_()  # constants alone: the sums miss nothing, and inputs are right but for them
            block.layer.bias.zero_()
    noise = [torch.randn(4, 6, **DOUBLE) for _ in range(4)]
    net = converted(model, noise[0], "dense")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    calibration = calibrate(net, noise)
    assert {fit.method for fit in calibration.fits if fit.part[0] == "K"} == {"left: worse than none"}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(choice.used for choice in calibration.corrections)
    net = converted(chain("dense"), noise[0], "low-rank")
    net.coarse.K1_1.requires_grad_(False)
    methods = {fit.part: fit.method for fit in calibrate(net, noise).fits}
    assert methods["K1_1"] == methods["K1_2"] == "left: frozen"
    assert methods["K2_1"].startswith("least squares, ridge ")


@pytest.mark.parametrize("coarse", ["dense", "low-rank:8", "folded"])
def test_few_samples_are_told_from_enough(coarse: str) -> None:
    """Blocks that are not linear leave errors; with few samples the report says so, and about what many would leave."""
    torch.manual_seed(0)
    width = 16
    layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)) for _ in range(4)]
    model = Chain(layers, width)
    test, errors, words = [torch.randn(2000, width, **DOUBLE)], {}, "fitted to few samples"
    for rows in (150, 6000):
        batches = [torch.randn(rows // 3, width, **DOUBLE) for _ in range(3)]
        net = pararealize(copy.deepcopy(model.double()), 4, example_inputs=batches[0], coarse=coarse, source="stem")
        calibration = calibrate(net, batches, test=test)
        assert (words in str(calibration)) == (rows == 150)
        (errors[rows],) = calibration.corrections
    assert errors[150].error_of_many < 0.95 * errors[150].error
    assert errors[6000].error == pytest.approx(errors[150].error_of_many, rel=0.15)


def test_again_is_the_same() -> None:
    batches = [torch.randn(30, 6, **DOUBLE) for _ in range(5)]
    net = converted(chain("dense"), batches[0], "low-rank:3")
    states = []
    for keep in (1 << 30, 0):  # the second time from other weights, and with activations computed anew
        calibrate(net, batches, keep=keep)
        states.append({key: value.clone() for key, value in net.state_dict().items()})
    for key, value in states[0].items():
        torch.testing.assert_close(value.abs(), states[1][key].abs(), rtol=1e-4, atol=1e-7)  # but for signs


def test_positions_that_a_mask_excludes_count_nowhere() -> None:
    generator = torch.Generator().manual_seed(1)
    model = chain("dense")
    batches = []
    for _ in range(4):
        x, mask = torch.randn(10, 5, 6, generator=generator, **DOUBLE), torch.ones(10, 5, dtype=torch.long)
        x[:, 3:], mask[:, 3:] = 1e6, 0
        batches.append({"x": x, "attention_mask": mask})
    weights = []
    for given in (batches, [{"x": b["x"][:, :3]} for b in batches]):
        net = converted(model, batches[0]["x"], "dense")
        held_out = HeldOut(InterfaceRecord(Interfaces(net), given, keep=1 << 30), None)
        fit_corrections(held_out.record.interfaces, held_out, held_out.record.interfaces.windows[0], ridge=1e-4)
        weights.append(net.coarse.K1_1.reads_d.weight.detach())
    torch.testing.assert_close(*weights)
