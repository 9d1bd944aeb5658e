"""Axes that a network keeps apart, against the network itself: series of forecasters, in every layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pararealize import pararealize
from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.causality import Causality
from pararealize.analysis.fields.dependency import dependencies
from pararealize.analysis.fields.independence import IndependentAxes
from pararealize.coarse.kinds import KINDS
from pararealize.errors import SourceError
from pararealize.tracing.front_end import capture
from tests.causal import disturb, leak
from tests.spaces import space

SERIES, TIMES, WIDTH = 5, 12, 8
OWN, UNCLEAR = Causality(side="own"), Causality(side="unclear")


class Layer(nn.Module):
    """z + tanh(linear(z)) for each series, whose values stand on the last axis, or on the one before (``turned``).

    Of patches (batch, series, patches, width), the series are folded into the batch, and patches are mixed. ``mixes``
    has series read each other.
    """

    def __init__(self, *, turned: bool = False, mixes: bool = False) -> None:
        super().__init__()
        self.turned, self.mixes = turned, mixes
        self.linear, self.patches, self.series = (nn.Linear(w, w) for w in (WIDTH, TIMES // 4, SERIES))

    def forward(self, z):
        shape = z.shape
        z = z.mT if self.turned else z
        if z.ndim == 4:
            z = z.reshape(-1, *z.shape[2:])
            z = z + self.patches(z.mT).mT
        y = torch.tanh(self.linear(z))
        if self.mixes:
            y = y + self.series(y.mT).mT
        z = z + y
        return (z.mT if self.turned else z).reshape(shape)


class Unrolled(nn.Module):
    """Layers, and then the patches of each series side by side: an axis less."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Layer(), Layer())

    def forward(self, z):
        return self.layers(z).flatten(2)


class Forecaster(nn.Module):
    """(batch, times, series), or (batch, series, times), to the same with other times."""

    def __init__(self, *layers: nn.Module, patches: bool, times_first: bool, turned: bool = False) -> None:
        super().__init__()
        self.is_patched, self.times_first, self.turned = patches, times_first, turned
        self.embed = nn.Linear(4 if patches else TIMES, WIDTH)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH * (TIMES // 4 if patches else 1), TIMES)

    def forward(self, x):
        z = x.mT if self.times_first else x
        z = self.embed(z.unflatten(2, (-1, 4)) if self.is_patched else z)
        z = z.mT if self.turned else z
        for layer in self.layers:
            z = layer(z)
        z = self.head((z.mT if self.turned else z).flatten(2))
        return z.mT if self.times_first else z


@st.composite
def forecasters(draw):
    """A network that keeps series apart, an input, and the axis of the series."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    patches, times_first = draw(st.booleans()), draw(st.booleans())
    turned = not patches and draw(st.booleans())
    layers = [Layer(turned=turned) for _ in range(draw(st.integers(2, 4)))]
    if patches and draw(st.booleans()):
        layers.append(Unrolled())
    model = Forecaster(*layers, patches=patches, times_first=times_first, turned=turned)
    x = torch.randn(2, TIMES, SERIES) if times_first else torch.randn(2, SERIES, TIMES)
    return model.eval(), x, 2 if times_first else 1


@settings(deadline=None, max_examples=12)
@given(forecasters(), st.sampled_from([*KINDS, "auto"]), st.sampled_from([None, "input", "stem"]))
def test_no_series_is_shown_to_another(case, coarse, source):
    model, x, axis = case
    assert leak(model, x, axis, 2) == 0
    try:
        net = pararealize(model, n=2, coarse=coarse, example_inputs=x, source=source).eval()
    except SourceError:
        return
    disturb(net)
    assert leak(net, x, axis, 2) == 0, str(net.plan)


def test_paths_and_what_is_bound_on_them():
    """Series that the first space has as its channels, and the others as their first axis."""
    model = Forecaster(*(Layer() for _ in range(3)), patches=True, times_first=True).eval()
    reads = dependencies(find_blocks(capture(model, torch.randn(2, TIMES, SERIES))))
    assert reads.independent == IndependentAxes(from_input=((1, 0, 0, 0, 0),), from_stem=())  # known of the blocks
    assert reads.of(0, 2) == (OWN, None)
    assert reads.of(0, 2, from_input=True) == (UNCLEAR, UNCLEAR)
    with pytest.raises(SourceError, match=r'order that it can keep: .* one by one, .*; pass source="stem"'):
        pararealize(model, n=2, example_inputs=torch.randn(2, TIMES, SERIES), source="input")


def test_an_axis_that_some_layer_mixes_or_no_interface_keeps():
    axes = IndependentAxes(from_stem=((0, 0, 1, None),))
    same = space(5, 8, channel=1)
    assert axes.bind((), same, same, 0, 1, from_input=False) == (OWN,)
    assert axes.bind((), same, space(8, 5, channel=1), 0, 2, from_input=False) == (UNCLEAR,)
    assert axes.bind((), same, space(40, channel=0), 0, 3, from_input=False) == (UNCLEAR,)
    past = Causality(side="past")
    assert axes.bind((past,), same, same, 0, 1, from_input=False) == (past,)
    model = Forecaster(Layer(), Layer(mixes=True), Layer(), patches=False, times_first=True).eval()
    chain = find_blocks(capture(model, torch.randn(2, TIMES, SERIES)))
    assert dependencies(chain).independent == IndependentAxes()
    plan = pararealize(model, n=2, coarse="linear", example_inputs=torch.randn(2, TIMES, SERIES)).plan
    assert not any(row.causal for row in (*plan.adapters, *plan.coarse_blocks))


def test_layers_by_channel():
    """A network of nothing but depthwise convolutions: what counts as the channels stays apart."""
    units = [nn.Sequential(nn.Conv1d(SERIES, SERIES, 3, padding=1, groups=SERIES), nn.Tanh()) for _ in range(4)]
    for source in ("input", "stem"):
        with pytest.raises(SourceError, match="one by one"):
            pararealize(nn.Sequential(*units), n=2, example_inputs=torch.randn(2, SERIES, TIMES), source=source)


class Alone(nn.Module):
    """x + conv(x) of every series by itself, folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        return x + torch.tanh(self.conv(x.reshape(-1, 1, x.shape[-1]))).reshape(x.shape)


def test_a_convolution_of_each_series_reads_no_series_beside_it():
    """(batch, series, times), of which the times seem to be channels: the convolution's axis is not that of the map."""
    model, x = nn.Sequential(*(Alone() for _ in range(4))).eval(), torch.randn(2, SERIES, TIMES)
    net = pararealize(model, n=2, coarse="linear", example_inputs=x).eval()
    disturb(net)
    assert leak(net, x, 1, 2) == 0


def test_vectors_have_channels_alone():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6))

        def forward(self, x):
            return x + torch.tanh(self.weight * x)

    chain = find_blocks(capture(nn.Sequential(*(Scale() for _ in range(4))), torch.randn(2, 6)))
    assert dependencies(chain).of(0, 2) == ()


def test_on_the_meta_device_it_is_not_known():
    with torch.device("meta"):
        model, x = Forecaster(Layer(), Unrolled(), patches=True, times_first=True), torch.randn(2, TIMES, SERIES)
    notes = dependencies(find_blocks(capture(model, x))).notes
    assert any("stay apart is not known: the model is on the meta device" in note for note in notes)
