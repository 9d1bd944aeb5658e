"""Maps that are folded into the last layers of segments: the same network as with the maps beside it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize import PararealModule, calibrate, pararealize
from pararealize.calibration import Calibration
from pararealize.calibration.interfaces import Interfaces
from pararealize.errors import CoarseError
from tests.added_branches import AddedConvolution, AddedInPlace, AddedLinear, batches_of, chain_of
from tests.models import SmallResNet

BLOCKS = st.sampled_from([AddedLinear, AddedConvolution, AddedInPlace])


def converted(model: nn.Module, x: Tensor, coarse: str = "folded", n: int = 2, windows: int = 2) -> PararealModule:
    return pararealize(model, n, windows=windows, example_inputs=x, coarse=coarse, source="stem").eval()


def beside(
    net: PararealModule, model: nn.Sequential, maps: dict[str, tuple[Tensor, Tensor | None]], x: Tensor
) -> Tensor:
    """The network with its maps as matrices of their own: w + Σ_j (y_j + A_j e_j + b_j - w)."""
    w = x
    for window in net.plan.windows:
        total = w
        for segment in window.segments:
            u = w
            for block in model[segment.first : segment.last]:
                u = block(u)
            s, e = model[segment.last].inner(u)
            name = segment.name.replace("g", "K", 1)
            if name in maps:
                A, b = maps[name]
                channels_last = e.movedim(1, -1) if e.ndim == 4 else e
                added = channels_last @ A.T + (0 if b is None else b)
                e = e + (added.movedim(-1, 1) if e.ndim == 4 else added)
            total = total + (s + e - w)
        w = total
    return w


@settings(deadline=None, max_examples=4)
@given(
    BLOCKS,
    st.integers(1, 5),
    st.integers(4, 7),
    st.integers(2, 3),
    st.integers(2, 3),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_folded_network_is_that_with_the_maps_beside_it(
    block: type[nn.Module], width: int, depth: int, n: int, windows: int, bias: bool, seed: int
) -> None:
    """Outputs and gradients, of the input and of every weight that no map is in; later windows have no adapters."""
    model = chain_of(block, width, depth, seed, bias=bias)
    x = batches_of(block, width, 1, seed)[0]
    net = converted(model, x, n=n, windows=windows)
    maps: dict[str, tuple[Tensor, Tensor | None]] = {}
    for one in (one for window in net.plan.windows for one in Interfaces(net).folds.of(window)):
        b = torch.randn(width, dtype=torch.float64) if bias else None
        maps[one.row.name] = torch.randn(width, width, dtype=torch.float64), b
        one.map.fold(one.layer, *maps[one.row.name])
    assert len(maps) == sum(window.n for window in net.plan.windows if not window.sequential)
    results = []
    for own, function in ((net, net), (model, lambda v: beside(net, model, maps, v))):
        value = x.clone().requires_grad_()
        output = function(value)
        output.square().sum().backward()
        gradients = {name: p.grad for name, p in own.named_parameters() if ".down." not in name}
        results.append((output, value.grad, gradients))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [AddedLinear, AddedConvolution, AddedInPlace])
@pytest.mark.parametrize("bias", [True, False])
def test_reported_errors_are_those_of_the_network(block: type[nn.Module], bias: bool) -> None:
    model, batches = chain_of(block, 4, 4, bias=bias), batches_of(block, 4, 8)
    net = converted(model, batches[0])
    assert net.plan.virtual_speedup == converted(model, batches[0], "linear").plan.virtual_speedup
    calibration = calibrate(net, batches[:6], test=batches[6:])
    whole = torch.cat(batches[6:])
    interfaces = Interfaces(net)
    values = interfaces.in_sequence(whole)
    torch.testing.assert_close(values.output, model(whole), rtol=0, atol=0)  # in sequence it is the original
    torch.testing.assert_close(interfaces.result(values), net(whole))
    for choice in calibration.corrections:
        window = interfaces.windows[choice.m - 1]
        true = values.true[window.segments[-1].index]
        error = float((interfaces.end(values, window) - true).norm() / true.norm())
        assert choice.errors["folded" if choice.used else "none"] == pytest.approx(error, rel=1e-6)
        assert choice.used
        assert error < choice.errors["none"]
        assert {"none", "scale", "folded", "dense"} <= set(choice.errors)
    fit = {one.part: one for one in calibration.fits}["K2_1"]
    assert fit.method.endswith("folded into 2.down")
    assert " folded into 2.down and 1 more " in str(calibration)
    assert Calibration.from_json(calibration.to_json()) == calibration
    others = [key for key in model.state_dict() if ".down." not in key]
    assert all(torch.equal(net.state_dict()[key], model.state_dict()[key]) for key in others)


def test_again_is_the_same_and_unfolded_is_the_original() -> None:
    model, batches = chain_of(AddedLinear, 5, 4), batches_of(AddedLinear, 5)
    net = converted(model, batches[0])
    states = []
    for _ in range(2):
        calibrate(net, batches)
        states.append(copy.deepcopy(net.state_dict()))
    torch.testing.assert_close(*states, rtol=1e-9, atol=1e-9)
    assert not torch.equal(states[0]["1.down.weight"], model.state_dict()["1.down.weight"])
    Interfaces(net).folds.unfold()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in model.state_dict().items())


def test_they_are_left_where_they_are_worse_than_none_and_where_layers_are_frozen() -> None:
    model = chain_of(AddedLinear, 6, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # the sums miss nothing
    noise = batches_of(AddedLinear, 6)
    net = converted(model, noise[0])
    calibration = calibrate(net, noise)
    assert not any(choice.used for choice in calibration.corrections)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in model.state_dict().items())
    net = converted(chain_of(AddedLinear, 6, 4), noise[0])
    net.get_submodule("0.down").requires_grad_(False)
    methods = {fit.part: fit.method for fit in calibrate(net, noise).fits}
    assert methods["K1_1"] == methods["K1_2"] == "left: frozen"
    assert methods["K2_1"].startswith("least squares, ridge ")


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.03])
def test_what_rounding_undoes_is_left(scale: float) -> None:
    """Weights of bfloat16 round, and where the sums miss next to nothing that is more than a map repairs."""
    model, data = chain_of(AddedLinear, 32, 4), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for block in model for layer in (block.mix, block.down) for p in layer.parameters()):
            parameter.mul_(scale)
    batches = [torch.randn(256, 32, generator=data).bfloat16() for _ in range(6)]
    net = converted(model.bfloat16(), batches[0])
    calibration = calibrate(net, batches[:4], test=batches[4:])
    used = [choice.used for choice in calibration.corrections]
    assert all(used) == any(used) == (scale == 1.0)
    assert calibration.stage("after").output <= calibration.stage("before").output
    for choice in calibration.corrections:
        assert (choice.errors["folded"] < choice.errors["none"]) == choice.used


def test_maps_of_a_window_stay_where_one_of_its_layers_is_frozen() -> None:
    model, batches = chain_of(AddedLinear, 6, 4), batches_of(AddedLinear, 6)
    net = converted(model, batches[0])
    calibrate(net, batches)
    with_maps = copy.deepcopy(net.state_dict())
    net.get_submodule("0.down").requires_grad_(False)
    calibrate(net, batches)
    assert torch.equal(net.state_dict()["0.down.weight"], with_maps["0.down.weight"])
    assert torch.equal(net.state_dict()["1.down.weight"], with_maps["1.down.weight"])
    torch.testing.assert_close(net.state_dict(), with_maps)


def test_running_statistics_and_maps_are_tried_together() -> None:
    """Statistics are renewed, or put back with the maps that were fitted before."""
    torch.manual_seed(0)
    model, batches = SmallResNet(depth=6).double().eval(), [torch.randn(8, 3, 8, 8).double() for _ in range(5)]
    with pytest.raises(CoarseError, match="no segment ends with a linear layer or convolution whose output only adds"):
        converted(model, batches[0])  # a batch norm stands behind each convolution
    layers = [m for block in chain_of(AddedConvolution, 3, 4) for m in (block, nn.BatchNorm2d(3).double())]
    with_norms = nn.Sequential(*layers).eval()
    net = converted(with_norms, batches[0], windows=1, n=3)
    assert 0 < len(net.plan.corrections) < 3  # of segments that end with a norm there is none
    calibration = calibrate(net, batches, renew_statistics=True)
    assert calibration.stage("after").output <= calibration.stage("before").output
    document = json.loads(net.plan.to_json())
    assert [row["layer"] for row in document["corrections"]] == [row.layer for row in net.plan.corrections]


def test_adapters_have_maps_of_a_rank_where_one_is_named() -> None:
    model, batches = chain_of(AddedLinear, 6, 4), batches_of(AddedLinear, 6, 8)
    errors = {}
    for coarse in ("linear", "folded", "folded:3"):
        net = converted(model, batches[0], coarse)
        kinds = [(row.kind, row.rank) for row in net.plan.adapters]
        assert kinds == [("low-rank", 3) if coarse == "folded:3" else ("", 0)] * 2
        errors[coarse] = calibrate(net, batches).stage("after").output
    assert errors["folded:3"] < errors["folded"] < errors["linear"]
