"""What a network does not see, its conversion does not see: causal networks of every make, by every coarse kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pararealize import pararealize, restack
from pararealize.calibration.fitting import calibrate
from pararealize.coarse.kinds import KINDS
from pararealize.errors import CoarseError, PararealizeError, PlanError, SourceError
from pararealize.multigrid.module import layer_parallel
from pararealize.plan.plan import Plan
from tests.causal import MAKES, Network, disturb, leak, network, networks

KEEPS = 1e-5  # of the largest change, for what a Fourier transform rounds


@pytest.mark.parametrize("make", MAKES)
def test_no_conversion_sees_the_future(make):
    """None of the coarse kinds does, none is refused, and the plan says along which axis."""
    torch.manual_seed(0)
    model, x, axis = network(make)
    assert leak(model.eval(), x, axis, 7) < KEEPS
    for coarse in (*KINDS, "auto"):
        net = pararealize(model, n=2, coarse=coarse, example_inputs=x).eval()
        disturb(net)
        assert leak(net, x, axis, 7) < KEEPS, (make, coarse, str(net.plan))
        assert any("causal along axis 1: nothing later" in note for note in net.plan.notes)
        assert Plan.from_json(net.plan.to_json()) == net.plan


@pytest.mark.parametrize("make", MAKES)
def test_a_twin_that_sees_both_sides_is_converted_as_ever(make):
    torch.manual_seed(0)
    model, x, axis = network(make, both=True)
    net = pararealize(model.eval(), n=2, coarse="bottleneck", example_inputs=x).eval()
    assert not any(row.causal for row in (*net.plan.adapters, *net.plan.coarse_blocks))
    assert not any("causal" in note for note in net.plan.notes)
    assert leak(net, x, axis, 7) > 10 * KEEPS


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    networks(),
    st.sampled_from([*KINDS, "auto"]),
    st.integers(2, 5),
    st.integers(1, 11),
    st.booleans(),
    st.integers(1, 3),
)
def test_random_networks(case, coarse, n, t, from_input, windows):
    model, x, axis = case
    source = "input" if from_input and x.is_floating_point() else None
    try:
        net = pararealize(
            model.eval(), min(n, len(model.blocks)), coarse=coarse, example_inputs=x, source=source, windows=windows
        )
    except PararealizeError:
        return
    disturb(net.eval())
    assert leak(net, x, axis, t) < KEEPS, str(net.plan)


@pytest.mark.parametrize("make", ["front", "flag", "masked"])
def test_restacking_multigrid_and_calibration_keep_the_order(make):
    torch.manual_seed(0)
    model, x, axis = network(make)
    model.eval()
    assert leak(restack(model, "rk4", example_inputs=x, per="block", strict=False), x, axis, 7) < KEEPS
    assert leak(layer_parallel(model, coarsening=2, example_inputs=x), x, axis, 7) < KEEPS
    for coarse in ("linear", "bottleneck", "depthwise"):
        net = pararealize(model, n=3, coarse=coarse, example_inputs=x).eval()
        calibrate(net, [torch.randn_like(x) for _ in range(3)], steps=3)
        assert leak(net, x, axis, 7) < KEEPS, coarse


class Mirrored(nn.Module):
    """A network run backwards along its axis: what stands earlier is hidden from it."""

    def __init__(self, block: nn.Module, axis: int) -> None:
        super().__init__()
        self.block, self.axis = block, axis

    def forward(self, x):
        return self.block(x.flip(self.axis)).flip(self.axis)


@pytest.mark.parametrize("make", ["front", "flag", "map"])
def test_the_past_where_it_is_hidden(make):
    torch.manual_seed(0)
    model, x, axis = network(make)
    model.blocks = nn.ModuleList(Mirrored(block, axis) for block in model.blocks)
    for coarse in KINDS:
        net = pararealize(model.eval(), n=2, coarse=coarse, example_inputs=x).eval()
        disturb(net)
        assert leak(Mirrored(net, axis), x, axis, 7) < KEEPS, coarse
        assert leak(net, x, axis, 7) > 10 * KEEPS


class Strided(nn.Module):
    """A convolution of stride s, padded in front so that position o reads up to s·o, or to the end of its frame."""

    def __init__(self, before: int, after: int, stride: int, *, frame: bool) -> None:
        super().__init__()
        self.pad = nn.ConstantPad1d((2 * stride - 1 - (stride - 1 if frame else 0), 0), 0.0)
        self.conv = nn.Conv1d(before, after, 2 * stride, stride)

    def forward(self, x):
        return torch.tanh(self.conv(self.pad(x)))


def strided(stride, frame, depth=2):
    """Convolutions, a strided one, and convolutions."""
    front, back = network("front", depth=depth)[0], network("front", depth=depth)[0]
    return Network(front.stem, [*front.blocks, Strided(8, 8, stride, frame=frame), *back.blocks], nn.Identity()).eval()


@pytest.mark.parametrize("stride, frame", [(2, False), (2, True), (3, True), (4, False)])
def test_strided_convolutions(stride, frame):
    torch.manual_seed(0)
    model, x = strided(stride, frame), torch.randn(2, 3, 24)
    later = [torch.arange(24) >= t for t in range(stride, 24, stride)]
    for coarse in KINDS:
        for source in ("input", "stem"):
            net = pararealize(model, n=3, coarse=coarse, example_inputs=x, source=source).eval()
            disturb(net)
            with torch.no_grad():
                for i, mask in enumerate(later, 1):
                    change = (net(torch.where(mask, 5 * torch.randn_like(x), x)) - net(x)).abs()
                    assert change[..., :i].max() == 0, (coarse, source, str(net.plan))


def test_strides_that_no_adapter_keeps_to_are_refused():
    model, x = strided(3, frame=False), torch.randn(2, 3, 24)
    for source in ("input", "stem"):
        with pytest.raises(SourceError, match=r"into block blocks.3 .*average axis 1 \(24 to 8 positions\)"):
            pararealize(model, n=2, cuts=["blocks.3"], coarse="block", example_inputs=x, source=source)
    net = pararealize(model, n=2, coarse="linear", example_inputs=x, source="stem", sequential=3)
    assert net(x).shape == (2, 8, 8)


def test_cuts_fall_where_adapters_lead_to():
    """Behind the stride none does; of four cuts, the best are in front of it."""
    model, x = strided(3, frame=False, depth=4), torch.randn(2, 3, 24)
    plan = pararealize(model, n=3, coarse="linear", example_inputs=x).plan
    assert [segment.first for segment in plan.segments][-1] <= 4


def test_a_signal_without_a_channel_is_no_vector_to_mix():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network("front")[0]
            self.network.stem, self.network.head = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 1, 1)

        def forward(self, x):
            return self.network(x[:, None])[:, 0]

    model, x = Raw().eval(), torch.randn(2, 12)
    with pytest.raises(SourceError, match=r'in an order that it can keep.*pass source="stem"'):
        pararealize(model, n=3, coarse="linear", example_inputs=x, source="input")
    net = pararealize(model, n=3, coarse="paper", example_inputs=x).eval()
    disturb(net)
    assert leak(net, x, 1, 7) == 0


def test_a_plan_of_a_twin_that_sees_both_sides_is_refused():
    """Two networks whose blocks differ in the values of a mask alone have one fingerprint."""
    model, x, axis = network("masked")
    twin, _, _ = network("masked")
    for block in twin.blocks:
        block.mask.fill_(1)
    plan = pararealize(twin, n=2, coarse="depthwise", example_inputs=x).plan
    with pytest.raises(PlanError, match=r"C2 reads both sides of every axis, and the network axis 1: nothing later"):
        pararealize(model, plan=plan, coarse="depthwise", example_inputs=x)
    own = pararealize(model.eval(), n=2, coarse="depthwise", example_inputs=x).plan
    net = pararealize(model, plan=Plan.from_json(own.to_json()), example_inputs=x)
    assert leak(net, x, axis, 7) == 0


class Delayed(nn.Module):
    """A convolution that does not read its own position."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, 2)

    def forward(self, x):
        return self.conv(functional.pad(x, (2, 0)))[..., :-1]


def test_the_present_stays_hidden_too():
    """As in autoregressive networks on signals, whose first convolution reads the past alone."""
    torch.manual_seed(0)
    model, x, _ = network("front")
    model.stem = Delayed(3, 8)
    for coarse in KINDS:
        net = pararealize(model.eval(), n=3, coarse=coarse, example_inputs=x, source="input").eval()
        disturb(net)
        with torch.no_grad():
            other = x.clone()
            other[..., 6] += 1
            assert (net(other) - net(x))[..., :7].abs().max() == 0, coarse
        assert any("1 before its own" in note for note in net.plan.notes)


def test_convolutions_without_padding_shorten_a_signal_at_its_beginning():
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Conv1d(4, 4, 2, dilation=2), nn.Tanh())]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 4, 30)
    for coarse in KINDS:
        net = pararealize(model, n=3, coarse=coarse, example_inputs=x).eval()
        disturb(net)
        with torch.no_grad():
            for t in (14, 20, 29):  # output o is of the time of input o + 12
                other = torch.where(torch.arange(30) >= t, 5 * torch.randn_like(x), x)
                assert (net(other) - net(x))[..., : t - 12].abs().max() == 0, (coarse, str(net.plan))


@pytest.mark.parametrize("coarse", ["paper", "bottleneck", "linear", "auto"])
def test_a_half_that_is_causal_has_causal_coarse_blocks(coarse):
    torch.manual_seed(0)
    first, x, _ = network("front")
    second, _, _ = network("front", both=True)
    model = Network(first.stem, [*first.blocks, *second.blocks], first.head).eval()
    net = pararealize(model, n=4, coarse=coarse, cuts=["blocks.2", "blocks.4", "blocks.6"], example_inputs=x)
    assert [bool(row.causal) for row in net.plan.coarse_blocks] == [True, False, False]
    assert [bool(row.causal) for row in net.plan.adapters][:2] == [True, True]


class Raster(nn.Module):
    """A masked convolution of a PixelCNN: it reads rows above, and what stands before in its own row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, 3, 3) / width)
        mask = torch.ones(3, 3)
        mask[2], mask[1, 2] = 0, 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return x + torch.tanh(functional.conv2d(x, self.weight * self.mask, padding=1))


def test_pixels_in_reading_order():
    torch.manual_seed(0)
    model = Network(nn.Conv2d(3, 8, 1), [Raster(8) for _ in range(4)], nn.Conv2d(8, 3, 1)).eval()
    x, order = torch.randn(2, 3, 6, 6), torch.arange(36).view(6, 6)
    for coarse in KINDS:
        net = pararealize(model, n=2, coarse=coarse, example_inputs=x).eval()
        disturb(net)
        with torch.no_grad():
            for t in (1, 8, 21):
                change = (net(torch.where(order >= t, 5 * torch.randn_like(x), x)) - net(x)).abs()
                assert change.flatten(2)[..., :t].max() == 0, (coarse, str(net.plan))


def test_a_callable_that_reads_the_future_is_refused():
    model, x, axis = network("front")

    def both(segment, x_shape, y_shape):
        return nn.Conv1d(x_shape[0], y_shape[0], 3, padding=1)

    def past(segment, x_shape, y_shape):
        return nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(x_shape[0], y_shape[0], 3))

    with pytest.raises(CoarseError, match=r"F\^1 of .*both reads what .* axis 1 position o reads from 1·o - 1 to"):
        pararealize(model, n=2, coarse=both, example_inputs=x)
    net = pararealize(model.eval(), n=2, coarse=past, example_inputs=x).eval()
    assert leak(net, x, axis, 7) == 0
    pararealize(network("front", both=True)[0], n=2, coarse=both, example_inputs=x)


def test_on_the_meta_device_the_plan_says_what_is_not_known():
    with torch.device("meta"):
        model, x, _ = network("computed")
        convolutions, signal, _ = network("front")
    plan = pararealize(model, n=2, coarse="linear", example_inputs=x).plan
    assert any("is causal is not known: the model is on the meta device" in note for note in plan.notes)
    plan = pararealize(convolutions, n=2, coarse="depthwise", example_inputs=signal).plan
    assert any("nothing later" in note for note in plan.notes)
