"""Padding and shifts that keep to one side, against trying the built modules out."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pararealize.analysis.causality import Causality
from pararealize.analysis.fields.probe import try_out
from pararealize.coarse.adapter import build_adapter
from pararealize.coarse.coarse_block import coarse_units
from pararealize.coarse.kinds import kind_for
from pararealize.coarse.one_sided import Pad, Subsample, kernel_extent, misfit
from tests.spaces import is_strided_and_pointwise, space

SIDES = [None, *(Causality(side=side) for side in ("past", "future", "own"))]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_fits_reads_no_more_than_it_may(data):
    """Every kind and the adapter, on maps of one and two axes, at strides 1, 2 and 4, and longer axes."""
    axes = data.draw(st.integers(1, 2))
    x_extent, y_extent, sides = [], [], []
    for _ in range(axes):
        size, side = data.draw(st.integers(4, 9)), data.draw(st.sampled_from(["past", "future", "own", None]))
        # what reads its own position alone, some positions before, reads nothing at the first ones, of which a trial
        # along several axes says nothing
        hows = ["same", "half", "quarter", "double"] + ["lag"] * (side != "own" or axes == 1)
        how = "same" if side == "future" else data.draw(st.sampled_from(hows))
        stride = {"half": 2, "quarter": 4}.get(how, 1)
        size = 8 if stride == 4 else size  # of which no other stride gives as many
        x_extent.append(size)
        y_extent.append(2 * size if how == "double" else -(-size // stride))
        offset = -1 if how == "lag" else 0
        frame = stride > 1 and data.draw(st.booleans())
        sides.append(side and Causality(side=side, stride=stride, offset=offset, frame=frame))
    last = data.draw(st.booleans())
    x = space(*x_extent, 6, channel=axes) if last else space(6, *x_extent)
    y = space(*y_extent, 8, channel=axes) if last else space(8, *y_extent)
    kind = data.draw(st.sampled_from(["paper", "depthwise", "bottleneck", "linear", "adapter"]))
    sides = tuple(sides) if any(sides) else ()
    torch.manual_seed(0)
    if kind == "adapter":
        assume(not misfit(x, y, sides))
        module = build_adapter(x, y, reads="input", sides=sides)
    else:
        assume(kind_for(kind, x, y, sides)[0] == kind)
        module = coarse_units(kind, x, y, 1, 5, sides)
    assert not any(map(is_strided_and_pointwise, module.modules()))
    if kind == "linear":
        a, b = torch.randn(2, 3, *x.shape)
        torch.testing.assert_close(module(2 * a - b), 2 * module(a) - module(b), rtol=1e-4, atol=1e-4)
    for (_, behind, ahead), side in zip(try_out(module, x, y).axes, sides, strict=False):
        assert side is None or side.allows(behind, ahead)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("halving", [None, 0, 1])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_window_keeps_or_halves_the_size_as_two_sided_ones_do(side, halving, kernel):
    if side is not None and side.side == "future" and halving is not None:
        pytest.skip("what is read from behind is never halved")
    for size in (9, 10):
        k, padding, ends = kernel_extent(kernel, halving, side)
        stride = 1 if halving is None else 2
        length = (size + sum(ends) + 2 * padding - k) // stride + 1
        assert length == (size if halving is None else (size + 2 * halving - 3) // 2 + 1)


def test_what_does_not_fit():
    past, unclear = (Causality(side="past", stride=3),), (Causality(side="unclear"),)
    assert "average axis 1 (24 to 8 positions)" in misfit(space(4, 24), space(4, 8), past)
    assert not misfit(space(4, 24), space(4, 8), (Causality(side="past", stride=3, frame=True),))
    assert "in an order that it can keep" in misfit(space(4, 24), space(24, 4, channel=1), unclear)
    assert not misfit(space(4, 24), space(4, 7), ())
    kind, note = kind_for("paper", space(4, 24), space(4, 8), past)
    assert kind == "block"
    assert note == (
        '"paper" would average axis 1 (24 to 8 positions), along which the network reads nothing later: "block" instead'
    )


def test_padding_stands_in_front_of_channels_or_behind():
    x = torch.ones(1, 2, 3)
    assert Pad([(2, -1)])(x).tolist() == [[[0, 0, 1, 1]] * 2]
    assert Pad([(1, 0)], behind=1)(x).shape == (1, 3, 3)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_subsampling_is_what_a_strided_pointwise_convolution_reads(axes, last, dtype):
    sizes, strides = zip(*axes, strict=True)
    x = torch.randn(2, 3, *sizes, dtype=dtype)
    x = (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x).requires_grad_()
    read, gradient = Subsample(strides)(x), x[(..., *(slice(None, None, stride) for stride in strides))]
    assert torch.equal(read, gradient)
    weight = torch.randn(4, 3, *(1 for _ in sizes), dtype=torch.float64)
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(sizes)]
    expected = convolve(x.double(), weight, stride=strides)
    torch.testing.assert_close(convolve(read.double(), weight), expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (read, gradient)))
