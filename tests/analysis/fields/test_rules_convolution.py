"""Rules of operations that slide a kernel, against the support of the gradient: exact where they can be, never less."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from tests.field_oracle import assert_covers, field_of, positive, support

quick = settings(deadline=None, max_examples=60)
kernels = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))


@st.composite
def stacks(draw) -> nn.Sequential:
    """A few convolutions and average pools of random kernel, stride, padding and dilation, along one axis."""
    layers: list[nn.Module] = []
    for kernel, stride, padding, dilation in draw(st.lists(kernels, min_size=1, max_size=3)):
        if draw(st.booleans()):
            layers.append(nn.Conv1d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation))
        else:
            layers.append(nn.AvgPool1d(kernel, stride=stride, padding=min(padding, kernel // 2)))
    return positive(nn.Sequential(*layers))


@quick
@given(stacks())
def test_stacks_read_exactly_their_field(stack):
    """In the middle of a long map, where no padding cuts anything off, support and field are equal."""
    stack, x = stack.double(), torch.rand(1, 1, 260).double()
    field = field_of(stack, x)
    count = stack(x).shape[2]
    for place in {count // 3, count // 2, count // 2 + 1} & set(range(count)):
        first = field.start[0] + field.stride[0] * place
        if first >= 0 and first + field.size[0] <= x.shape[2]:
            assert support(stack, x, (place,), 0) == (first, first + field.size[0] - 1)


@pytest.mark.parametrize("parametrized", [weight_norm, spectral_norm, orthogonal])
@pytest.mark.parametrize("module", [nn.Conv1d(1, 2, 3, padding=2, dilation=2), nn.ConvTranspose1d(1, 2, 3)])
def test_a_parametrized_convolution_has_the_field_of_the_plain_one(parametrized, module):
    """What makes its weight changes nothing about which positions it reads, though the class is another one."""
    x = torch.rand(1, 1, 12)
    field = field_of(nn.Sequential(module), x)
    assert field_of(nn.Sequential(parametrized(copy.deepcopy(module))), x) == field
    assert not field.is_global


@quick
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 2), st.integers(5, 9))
def test_transposed_convolutions_read_within_their_field(kernel, stride, padding, dilation, extent):
    if padding > dilation * (kernel - 1) // 2:
        padding = 0
    module = nn.ConvTranspose1d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation)
    assert_covers(positive(nn.Sequential(module, nn.Conv1d(1, 1, 1))), torch.rand(1, 1, extent))


@pytest.mark.parametrize("kernel, stride, padding, dilation", [(3, 1, 1, 1), (4, 2, 1, 1), (2, 2, 0, 1), (3, 1, 2, 2)])
def test_transposed_convolutions_without_holes_are_exact(kernel, stride, padding, dilation):
    """Where the kernel is a multiple of the stride, or the stride is 1, every position of the field is read."""
    module = nn.ConvTranspose2d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation)
    assert_covers(positive(nn.Sequential(module)), torch.rand(1, 1, 9, 7), exact=True)


@quick
@given(st.integers(2, 13), st.integers(1, 15))
def test_adaptive_pools_read_within_their_field(extent, target):
    field = assert_covers(
        nn.Sequential(nn.AdaptiveAvgPool1d(target)), torch.rand(1, 2, extent), exact=extent % target == 0
    )
    if target == 1:
        assert field.is_global


WINDOWS = {
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool, dilated": lambda x: F.max_pool2d(x, (2, 3), stride=1, dilation=(2, 1)),
    "max pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "average pool": lambda x: F.avg_pool2d(x, (3, 2), padding=(1, 0)),
    "norm pool": lambda x: F.lp_pool2d(x, 2, (3, 2), stride=(1, 2)),
    "norm pool without a stride": lambda x: F.lp_pool2d(x, 2.0, 3),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "cut off": lambda x: F.pad(x, (-1, -2, -1, 0)),
    "cut off and padded": lambda x: F.pad(x, (2, -1)),
}


class Alone(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", WINDOWS)
def test_pools_and_shuffles_read_within_their_field(name):
    """Averages read all of their kernel; of a maximum, autograd sees but the largest."""
    exact = name in ("average pool", "norm pool", "norm pool without a stride", "pixel unshuffle", "cut off")
    assert_covers(Alone(WINDOWS[name]), torch.rand(2, 4, 12, 10) + 0.1, exact=exact)


@pytest.mark.parametrize(
    "module, expected",
    [
        (nn.MaxPool2d((3, 2), stride=(2, 1), dilation=(2, 3)), "5×4, stride 2×1, start 0×0"),
        (nn.MaxPool2d(3, padding=1), "3×3, stride 3×3, start -1×-1"),
        (nn.LPPool2d(2, 3), "3×3, stride 3×3, start 0×0"),
        (nn.PixelShuffle(2), "3/2×3/2, stride 1/2×1/2, start -1/2×-1/2"),
        (nn.PixelUnshuffle(3), "3×3, stride 3×3, start 0×0"),
        (nn.AdaptiveAvgPool2d((6, 12)), "2×1, stride 2×1, start 0×0"),
        (nn.AdaptiveMaxPool2d((1, 3)), "all×4, stride 12×4, start 0×0"),
        (nn.ZeroPad2d((1, 2, 3, 0)), "1×1, stride 1×1, start -3×-1"),
        (nn.Upsample(scale_factor=2), "3/2×3/2, stride 1/2×1/2, start -1/2×-1/2"),
        (nn.ConvTranspose2d(8, 1, 2, stride=2), "3/2×3/2, stride 1/2×1/2, start -1/2×-1/2"),
        (nn.Conv2d(8, 1, 4, padding="same", dilation=2), "7×7, stride 1×1, start -3×-3"),
        (nn.Conv2d(8, 1, 4, padding="valid", dilation=2), "7×7, stride 1×1, start 0×0"),
        (nn.Conv2d(8, 1, 3, padding=1, padding_mode="reflect"), "3×3, stride 1×1, start -1×-1"),
        (nn.Conv2d(8, 1, 3, padding=(1, 0), padding_mode="circular"), "all×3, stride 1×1, start 0×0"),
    ],
)
def test_intervals_that_a_person_would_name(module, expected):
    assert str(field_of(nn.Sequential(module), torch.rand(1, 8, 12, 12))) == expected


RESIZES = [(mode, False) for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")]


@pytest.mark.parametrize("mode, smooth", [*RESIZES, ("bilinear", True), ("bicubic", True)])
@pytest.mark.parametrize("extent, target", [(6, 12), (7, 5), (5, 13), (9, 3), (4, 4)])
def test_interpolation_reads_within_its_field(mode, extent, target, smooth):
    class Resize(nn.Module):
        def forward(self, x):
            return F.interpolate(x, size=(target, target), mode=mode, antialias=smooth)

    assert_covers(Resize(), torch.rand(1, 1, extent, extent))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("extent, target", [(40, 20), (30, 45), (36, 9)])
def test_interpolation_says_little_more_than_is_read(mode, extent, target):
    """Within two positions of what is read, or three for a cubic: a cover, but no global one."""

    def resize(x):
        return F.interpolate(x, size=target, mode={"bilinear": "linear"}.get(mode, mode))

    def resize_wide(x):
        return F.interpolate(x, size=(target, 1), mode=mode)

    function, x = (
        (resize_wide, torch.rand(1, 1, extent, 1)) if mode == "bicubic" else (resize, torch.rand(1, 1, extent))
    )
    module, axes = Alone(function).double(), (2,) if x.dim() == 3 else (2, 3)
    field = field_of(module, x.double(), axes, axes)
    middle = target // 2
    first, last = support(module, x.double(), (middle, 0)[: len(axes)], 0, axes)
    assert field.size[0] <= last - first + 1 + (4 if mode == "bicubic" else 3)


@pytest.mark.parametrize("scale", [2, 1.5, 0.75])
def test_interpolation_with_corners_or_scale(scale):
    assert_covers(nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=True), torch.rand(1, 1, 8, 8))
    assert_covers(nn.Upsample(scale_factor=scale), torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("pads", [(1, 2, 0, 3), (2, 0), (0, 0, 1, 1)])
def test_padding_reads_within_its_field(mode, pads):
    if mode != "constant" and len(pads) == 2:
        pads = (*pads, 0, 0)

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = positive(nn.Conv2d(1, 1, 3))

        def forward(self, x):
            return self.conv(F.pad(x, pads, mode=mode))

    field = assert_covers(Padded(), torch.rand(1, 1, 7, 7), exact=mode == "constant")
    assert field.is_global == (mode == "circular" and any(pads[:2]) and any(pads[2:]))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_of_convolutions(mode):
    assert_covers(positive(nn.Conv2d(1, 1, 5, padding=2, padding_mode=mode)), torch.rand(1, 1, 9, 9))


def test_one_and_three_axes():
    stack = nn.Sequential(nn.Conv3d(1, 1, (1, 3, 5), stride=(1, 2, 1)), nn.MaxPool3d(2))
    assert str(field_of(stack, torch.rand(1, 1, 8, 17, 9))) == "2×5×6, stride 2×4×2, start 0×0×0"
    assert str(field_of(nn.Conv1d(1, 1, 4, padding="same", dilation=2), torch.rand(1, 1, 9))) == "7, stride 1, start -3"


def test_convolution_of_tokens_mixes_them():
    """Where the spatial axis of a block stands in a convolution's channels, every position is read."""
    assert field_of(nn.Conv1d(5, 5, 1), torch.rand(1, 5, 6), (1,), (1,)).is_global


class PadsToAMultiple(nn.Module):
    """What a size decides is computed in the graph: here 1 position to the left, of 8."""

    def forward(self, x):
        return F.pad(x, [-x.size(2) % 3, 0], mode="constant", value=1.0)


def test_padding_that_follows_a_size_reads_as_it_is_for_the_example():
    x = torch.rand(1, 1, 8)
    module = positive(nn.Sequential(PadsToAMultiple(), nn.Conv1d(1, 1, 3)))
    assert field_of(module, x).start == (-1,)
    assert_covers(module, x)
