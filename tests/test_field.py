"""Receptive fields against an oracle that knows no rules: the support of the gradient of one output position."""

from __future__ import annotations

import itertools
import operator
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from pararealize.errors import CutError, FieldError
from pararealize.field import Fields, ReceptiveField, receptive_field


def field_of(module: nn.Module, x: torch.Tensor, enter_axes=None, leave_axes=None, **options) -> ReceptiveField:
    """The field of a whole module, traced symbolically; axes default to all behind batch and channels."""
    traced = fx.symbolic_trace(module)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FakeTensorProp(traced, mode).propagate(x)
    nodes = list(traced.graph.nodes)
    output = nodes[-1].args[0]
    axes = enter_axes or tuple(range(2, x.dim()))
    return receptive_field(
        traced, nodes[1:-1], enter=nodes[0], leave=output, enter_axes=axes, leave_axes=leave_axes or axes, **options
    )


def support(
    module: nn.Module, x: torch.Tensor, position: tuple[int, ...], axis: int, axes=None
) -> tuple[int, int] | None:
    """The first and last input position along one axis whose change moves the output at ``position``."""
    axes = axes or tuple(range(2, x.dim()))
    x = x.clone().requires_grad_()
    y = module(x)
    index: list[slice | int] = [slice(None)] * y.dim()
    for dim, place in zip(axes, position, strict=True):
        index[dim] = place
    (gradient,) = torch.autograd.grad(y[tuple(index)].sum(), x)
    others = [d for d in range(x.dim()) if d != axes[axis]]
    touched = gradient.abs().sum(others).nonzero().flatten()
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def interval(field: ReceptiveField, axis: int, position: int, extent: int) -> tuple[int, int]:
    """The first and last position of the map that the field says is read."""
    size = field.size[axis]
    if size is None:
        return 0, extent - 1
    first = Fraction(field.start[axis] + field.stride[axis] * position)
    last = first + size - 1
    return max(0, -((-first.numerator) // first.denominator)), min(extent - 1, last.numerator // last.denominator)


def assert_covers(module: nn.Module, x: torch.Tensor, *, exact: bool = False, axes=None) -> ReceptiveField:
    """Every output position along each axis reads within its field; with ``exact``, up to both ends of it."""
    module = module.double().eval()
    x = x.double()
    axes = axes or tuple(range(2, x.dim()))
    field = field_of(module, x, axes, axes)
    shape = module(x).shape
    for axis, dim in enumerate(axes):
        for place in range(shape[dim]):
            position = tuple(place if d == dim else shape[d] // 2 for d in axes)
            seen, said = support(module, x, position, axis, axes), interval(field, axis, place, x.shape[dim])
            if seen is None:
                continue
            assert said[0] <= seen[0], f"{field}: output {place} of axis {axis} reads {seen}, field says {said}"
            assert seen[1] <= said[1], f"{field}: output {place} of axis {axis} reads {seen}, field says {said}"
            first = field.start[axis] + field.stride[axis] * place
            inside = field.size[axis] is not None and first >= 0 and first + field.size[axis] <= x.shape[dim]
            if exact and inside:
                assert seen == said
    return field


def positive(module: nn.Module) -> nn.Module:
    """The same module with every weight positive, so that no contribution cancels."""
    for parameter in module.parameters():
        parameter.data = parameter.data.abs() + 0.1
    return module


quick = settings(deadline=None, max_examples=60)
windows = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))


@st.composite
def stacks(draw) -> nn.Sequential:
    """A few convolutions and average pools of random kernel, stride, padding and dilation, along one axis."""
    layers: list[nn.Module] = []
    for kernel, stride, padding, dilation in draw(st.lists(windows, min_size=1, max_size=3)):
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


@quick
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 2), st.integers(5, 9))
def test_transposed_convolutions_read_within_their_field(kernel, stride, padding, dilation, extent):
    if padding > dilation * (kernel - 1) // 2:
        padding = 0
    module = nn.ConvTranspose1d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation)
    assert_covers(positive(nn.Sequential(module, nn.Conv1d(1, 1, 1))), torch.rand(1, 1, extent))


@quick
@given(st.integers(2, 13), st.integers(1, 15))
def test_adaptive_pools_read_within_their_field(extent, target):
    field = assert_covers(
        nn.Sequential(nn.AdaptiveAvgPool1d(target)), torch.rand(1, 2, extent), exact=extent % target == 0
    )
    if target == 1:
        assert field.is_global


RESIZES = [(mode, False) for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")]


@pytest.mark.parametrize("mode, smooth", [*RESIZES, ("bilinear", True), ("bicubic", True)])
@pytest.mark.parametrize("extent, target", [(6, 12), (7, 5), (5, 13), (9, 3), (4, 4)])
def test_interpolation_reads_within_its_field(mode, extent, target, smooth):

    class Resize(nn.Module):
        def forward(self, x):
            return F.interpolate(x, size=(target, target), mode=mode, antialias=smooth)

    assert_covers(Resize(), torch.rand(1, 1, extent, extent))


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

    assert_covers(Padded(), torch.rand(1, 1, 7, 7))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_of_convolutions(mode):
    assert_covers(positive(nn.Conv2d(1, 1, 5, padding=2, padding_mode=mode)), torch.rand(1, 1, 9, 9))


class Lambda(nn.Module):
    """A function as a module, with a convolution to use in it."""

    def __init__(self, function, channels=4):
        super().__init__()
        self.function = function
        self.conv = positive(nn.Conv2d(channels, channels, 3, padding=1))
        self.linear = positive(nn.Linear(channels, channels))

    def forward(self, x):
        return self.function(self, x)


PIECES = {
    "residual": lambda m, x: x + m.conv(m.conv(x)),
    "residual in place": lambda m, x: m.conv(x).add_(x).relu_(),
    "squeeze-excite": lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "squeeze-excite by pool": lambda m, x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    "concatenate channels": lambda m, x: torch.cat([x, m.conv(x)], 1).chunk(2, dim=1)[1],
    "concatenate space": lambda m, x: torch.cat([x[:, :, :2], m.conv(x)], dim=2)[:, :, 2:],
    "shuffle": lambda m, x: x.view(2, 2, 2, 8, 8).transpose(1, 2).reshape(2, 4, 8, 8),
    "channels last and back": lambda m, x: m.linear(m.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "flatten and back": lambda m, x: m.conv(x).flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (8, 8)),
    "layer norm over channels": lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2),
    "group norm": lambda m, x: F.group_norm(x, 2),
    "slices": lambda m, x: m.conv(x)[..., 1::2, ::2],
    "halves": lambda m, x: torch.cat([x[:, :2], x[:, 2:] * 2], 1),
    "unsqueeze": lambda m, x: m.conv(x).unsqueeze(2).squeeze(2),
    "move dimensions": lambda m, x: torch.movedim(m.linear(torch.movedim(x, 1, -1)), -1, 1),
    "space transposed": lambda m, x: m.conv(x).transpose(2, 3),
    "matmul over channels": lambda m, x: torch.matmul(m.linear.weight, x.flatten(2)).view(2, 4, 8, 8),
    "column attention": lambda m, x: F.scaled_dot_product_attention(*[x.permute(0, 3, 2, 1)] * 3).permute(0, 3, 2, 1),
    "softmax over width": lambda m, x: m.conv(x).softmax(-1),
    "softmax over channels": lambda m, x: m.conv(x).softmax(1),
    "roll": lambda m, x: torch.roll(m.conv(x), 1, 3),
    "pixel shuffle": lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "max over height": lambda m, x: m.conv(x) + x.amax(2, keepdim=True),
    "stack and unbind": lambda m, x: torch.stack([x, m.conv(x)], dim=1).unbind(1)[1],
    "narrow": lambda m, x: m.conv(x).narrow(2, 2, 4),
    "select": lambda m, x: m.conv(x) + x.select(2, 3).unsqueeze(2),
    "dilated branch": lambda m, x: x + F.conv2d(x, m.conv.weight, padding=2, dilation=2),
    "strided branches": lambda m, x: F.avg_pool2d(m.conv(x), 2) + F.conv2d(x, m.conv.weight, stride=2, padding=1),
    "different strides": lambda m, x: x + F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
    "repeat": lambda m, x: m.conv(x).repeat(1, 1, 2, 1),
    "expand": lambda m, x: m.conv(x) + F.adaptive_avg_pool2d(x, (1, 8)).expand(2, 4, 8, 8),
    "shape alone": lambda m, x: m.conv(x) + torch.zeros_like(x.flip(3)) + x.flip(2).new_ones(8),
    "product": lambda m, x: x * m.conv(x) + operator.neg(x) / 2,
    "write in place": lambda m, x: written(x, m.conv(x)),
}


def written(x, y):
    z = x + 0
    z[:, :2] = y[:, :2]
    return z


fx.wrap("written")


@pytest.mark.parametrize("name", PIECES)
def test_pieces_read_within_their_field(name):
    if name == "write in place":
        with pytest.raises(FieldError, match="written"):
            field_of(Lambda(PIECES[name]), torch.rand(2, 4, 8, 8))
        return
    torch.manual_seed(0)
    assert_covers(Lambda(PIECES[name]), torch.rand(2, 4, 8, 8))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("residual", "5×5, stride 1×1, start -2×-2"),
        ("residual in place", "3×3, stride 1×1, start -1×-1"),
        ("squeeze-excite", "global"),
        ("concatenate channels", "3×3, stride 1×1, start -1×-1"),
        ("shuffle", "1×1, stride 1×1, start 0×0"),
        ("channels last and back", "3×3, stride 1×1, start -1×-1"),
        ("layer norm over channels", "1×1, stride 1×1, start 0×0"),
        ("slices", "3×3, stride 2×2, start 0×-1"),
        ("column attention", "all×1, stride 1×1, start 0×0"),
        ("shape alone", "3×3, stride 1×1, start -1×-1"),
        ("softmax over width", "3×all, stride 1×1, start -1×0"),
        ("strided branches", "4×4, stride 2×2, start -1×-1"),
        ("different strides", "3×3, stride 1×1, start -1×-1"),
    ],
)
def test_fields_that_a_person_would_name(name, expected):
    assert str(field_of(Lambda(PIECES[name]), torch.rand(2, 4, 8, 8))) == expected


def test_tokens():
    block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
    assert assert_covers(block, torch.rand(1, 5, 6), axes=(1,)).size == (1,)

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(5, 5)

        def forward(self, x):
            return x + self.mix(x.transpose(1, 2)).transpose(1, 2)

    assert assert_covers(Mixer(), torch.rand(1, 5, 6), axes=(1,)).is_global


def test_a_change_of_axes_is_global():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2))
    field = field_of(module, torch.rand(2, 3, 8, 8), (2, 3), (2,))
    assert field == ReceptiveField.everywhere(2)
    assert field.then(ReceptiveField.everywhere(1)).size == (None, None)


def test_one_and_three_axes():
    stack = nn.Sequential(nn.Conv3d(1, 1, (1, 3, 5), stride=(1, 2, 1)), nn.MaxPool3d(2))
    assert str(field_of(stack, torch.rand(1, 1, 8, 17, 9))) == "2×5×6, stride 2×4×2, start 0×0×0"
    assert str(field_of(nn.Conv1d(1, 1, 4, padding="same", dilation=2), torch.rand(1, 1, 9))) == "7, stride 1, start -3"


@quick
@given(st.lists(st.tuples(windows, windows), min_size=3, max_size=3))
def test_composition_is_associative_and_agrees_with_the_whole(layers):
    convs = [
        nn.Conv2d(1, 1, (k, h), stride=(s, t), padding=(p, q), dilation=(d, e)) for (k, s, p, d), (h, t, q, e) in layers
    ]
    x = torch.rand(1, 1, 120, 120)
    inputs = list(itertools.accumulate(convs[:-1], lambda value, conv: conv(value).detach(), initial=x))
    f, g, h = (field_of(conv, value) for conv, value in zip(convs, inputs, strict=True))
    assert f.then(g).then(h) == f.then(g.then(h)) == field_of(nn.Sequential(*convs), x)


def test_the_theory_of_a_stack():
    """Four of the paper's units, two 3×3 convolutions each, the first with stride 2, see 31×31 pixels (Lee et al.)."""
    units = [nn.Conv2d(1, 1, 3, stride=1 + (i == 0), padding=1) for i in range(8)]
    field = field_of(nn.Sequential(*units), torch.rand(1, 1, 32, 32))
    assert field.size == (31, 31)
    assert field.within((16, 64)) == (16, 31)


def test_fields_of_runs_and_late_errors():
    conv = ReceptiveField(size=(3, 3), stride=(1, 1), start=(-1, -1))
    fields = Fields(names=("a", "b", "c"), blocks=(conv, FieldError("no rule"), conv))
    assert fields.of(0, 0) == conv
    with pytest.raises(FieldError, match="no rule"):
        fields.of(0, 2)
    with pytest.raises(CutError, match="0 to 2"):
        fields.of(1, 3)
    assert "b: no rule" in str(fields)


class Shift(nn.Module):
    def forward(self, x):
        return torch.renorm(x, 2, 0, 1.0)


def test_unknown_operations_stop_and_name_the_remedy():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(Shift()))
    with pytest.raises(FieldError) as raised:
        field_of(net, torch.rand(2, 3, 8, 8))
    assert str(raised.value) == (
        "no receptive-field rule for torch.renorm (node 1.0); pass leaf_modules=[Shift] to treat it as global"
    )
    with pytest.raises(FieldError, match=r"torch.nn.CrossMapLRN2d \(node norm\); pass leaf_modules=\[CrossMapLRN2d\]"):
        field_of(Named(nn.CrossMapLRN2d(2)), torch.rand(2, 3, 8, 8))
    assert field_of(Named(nn.CrossMapLRN2d(2)), torch.rand(2, 3, 8, 8), opaque=("norm",)).is_global


class Named(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x)


def test_arguments_that_are_not_numbers_stop_too():
    class Dynamic(nn.Module):
        def forward(self, x):
            return F.pad(x, (x.size(2), 0))

    with pytest.raises(FieldError, match="its rule cannot read these arguments"):
        field_of(Dynamic(), torch.rand(2, 3, 8, 8))
