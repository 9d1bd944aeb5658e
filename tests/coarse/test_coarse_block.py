"""Coarse blocks: the paper's numbers, every kind on every pair of maps, copies of blocks, and the errors."""

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.cost import count_module
from pararealize.analysis.fields.field import ReceptiveField, receptive_fields
from pararealize.analysis.space import Space
from pararealize.coarse import adapter, coarse_block
from pararealize.errors import CoarseError
from pararealize.models import resnet20, resnet1001
from pararealize.tracing.front_end import capture


def space(*shape, channel=0, dtype="float32"):
    return Space(shape=shape, channel=channel, dtype=dtype)


def plan(kind, x, y, *, count=1, kernel=7, j=1):
    return SimpleNamespace(j=j, kind=kind, units=count, kernel=kernel, x=x, y=y)


IMAGE = space(3, 32, 32)
STAGES = (space(64, 32, 32), space(128, 16, 16), space(256, 8, 8))


def interfaces(n):
    """X_1 … X_N of the paper's cut of ResNet-1001: N/3 segments a stage."""
    return [stage for stage in STAGES for _ in range(n // 3)]


# ------------------------------------------------------------------------------------------------ the paper's numbers


@pytest.mark.parametrize(
    "n, coarse_parameters, total",
    [(3, 5.58, 15.93), (6, 5.72, 16.08), (12, 5.80, 16.15), (18, 8.90, 19.26), (24, 12.00, 22.36)],
)
def test_parameters_of_parareal_resnet_1001(n, coarse_parameters, total):
    X = interfaces(n)
    parts = [coarse_block.coarse_cost("paper", x, y, math.ceil(12 / n))[0] for x, y in pairwise(X)]
    inputs = [adapter.adapter_cost(IMAGE, x, from_stem=False)[0] for x in X[:-1]]
    with torch.device("meta"):
        original = sum(parameter.numel() for parameter in resnet1001(num_classes=100).parameters())
    assert len(parts) == n - 1
    assert round(original / 1e6, 2) == 10.35
    assert round(sum(parts) / 1e6, 2) == coarse_parameters
    assert round((original + sum(parts) + sum(inputs)) / 1e6, 2) == total


def test_flops_of_a_paper_unit_by_hand():
    """64 → 128 channels, 32² → 16²: two 3×3 convolutions and a projection, two FLOPs a multiply-add."""
    forward = 2 * 16 * 16 * (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128)
    _, cost = coarse_block.coarse_cost("paper", STAGES[0], STAGES[1], 1)
    assert (cost.flops_forward, cost.flops_backward) == (forward, 2 * forward)


def test_flops_of_a_depthwise_unit_by_hand():
    """Backward is twice forward; torch's own counter says 65 times forward for the depthwise part."""
    forward = 2 * 32 * 32 * (64 * 64 + 49 * 64 + 64 * 64)
    parameters, cost = coarse_block.coarse_cost("depthwise", STAGES[0], STAGES[0], 1, 7)
    assert parameters == 2 * 64 * 64 + 49 * 64 + 2 * 2 * 64
    assert (cost.flops_forward, cost.flops_backward) == (forward, 2 * forward)


def staged_chain(*stages):
    """Blocks (x, y) in stages, and fields that grow by (kernel - 1) a block: all that ``units_for`` reads."""
    blocks, sizes, strides = [], [], []
    for x, y, count, kernel in stages:
        for i in range(count):
            blocks.append(SimpleNamespace(x=x if i == 0 else y, y=y))
            sizes.append(kernel)
            strides.append(blocks[-1].x.extent[0] // y.extent[0])
    fields = [ReceptiveField(size=(k, k), stride=(s, s), start=(0, 0)) for k, s in zip(sizes, strides, strict=True)]

    def of(first, last):
        field = fields[first]
        for later in fields[first + 1 : last + 1]:
            field = field.then(later)
        return field

    return SimpleNamespace(blocks=blocks), SimpleNamespace(of=of)


def test_units_of_resnet_1001():
    """N_c = ⌈12/N⌉: four units see 31 of the 32 pixels."""
    X = (space(16, 32, 32), *STAGES)
    chain, fields = staged_chain(*((x, y, 111, 3) for x, y in pairwise(X)))
    assert [coarse_block.units_for("paper", chain, fields, n) for n in (3, 6, 12, 18, 24)] == [4, 2, 1, 1, 1]
    # the network's own bottlenecks have one 3×3 convolution each: 3 + 7·4 = 31 takes eight of them
    assert [coarse_block.units_for("block", chain, fields, n) for n in (3, 6, 12, 24)] == [8, 4, 2, 1]
    assert [coarse_block.units_for(kind, chain, fields, 3) for kind in ("depthwise", "linear", "exact", "custom")] == [
        1
    ] * 4


def test_units_of_a_network_of_one_stage_and_of_a_small_field():
    one = space(8, 14, 14)
    chain, fields = staged_chain((one, one, 20, 9))
    assert coarse_block.units_for("paper", chain, fields, 1) == 3  # at stride 1, u units see 1 + 4u of 14 pixels
    assert coarse_block.units_for("paper", chain, fields, 4) == 1


@given(st.integers(1, 40), st.integers(0, 3))
def test_units_to_see_against_the_gradient_of_a_stack(size, steps):
    """The formula against brute force: which inputs a stack of 3-wide convolutions reads."""
    count = coarse_block._units_to_see(size, steps)
    seen = [support(number, steps) for number in (count - 1, count) if number > 0]
    assert seen[-1] >= size
    assert len(seen) == 1 or seen[0] < size


def support(number, steps):
    x = torch.ones(1, 1, 512, requires_grad=True)
    y, kernel = x, torch.ones(1, 1, 3)
    for i in range(number):
        y = functional.conv1d(functional.conv1d(y, kernel, stride=2 if i < steps else 1, padding=1), kernel, padding=1)
    return int((torch.autograd.grad(y[0, 0, y.shape[-1] // 2], x)[0] != 0).sum())


@pytest.mark.parametrize(
    "size, extent, kernel",
    [
        ((3, 3), (32, 32), 3),
        ((6, 6), (32, 32), 5),
        ((None, None), (32, 32), 7),
        ((99, 99), (4, 4), 3),
        ((7,), (9, 9), 7),
    ],
)
def test_kernel_as_the_field_asks(size, extent, kernel):
    field = ReceptiveField(size=size, stride=(1,) * len(size), start=(0,) * len(size))
    assert coarse_block.kernel_for(space(8, *extent), field) == kernel


# ---------------------------------------------------------------------------------------------- every pair of maps


@st.composite
def maps(draw, axes):
    extent = draw(st.tuples(*[st.integers(1, 13)] * axes))
    last = draw(st.booleans()) and axes > 1
    channels = draw(st.integers(1, 5))
    return space(*extent, channels, channel=axes) if last else space(channels, *extent)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.sampled_from(coarse_block.UNITS))
def test_every_kind_on_every_pair_of_maps(data, axes, count, kind):
    x, y = data.draw(maps(axes)), data.draw(maps(axes))
    module = coarse_block.build_coarse(plan(kind, x, y, count=count, kernel=5), None, first=0, last=0, seed=0)
    r = torch.randn(5, *x.shape, requires_grad=True)
    out = module(r)
    assert out.shape == (5, *y.shape)
    out.square().sum().backward()
    assert r.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.eval()(r[:1]).shape == (1, *y.shape)
    parameters, cost = coarse_block.coarse_cost(kind, x, y, count, 5)
    assert parameters == sum(parameter.numel() for parameter in module.parameters())
    assert cost.flops_backward == 2 * cost.flops_forward
    with torch.device("meta"):
        on_meta = coarse_block.build_coarse(plan(kind, x, y, count=count, kernel=5), None, first=0, last=0, seed=0)
    assert all(parameter.is_meta for parameter in on_meta.parameters())


@pytest.mark.parametrize("size, target", [(32, 8), (55, 27), (27, 13), (224, 7), (224, 55), (24, 8), (7, 14)])
def test_resolution_changes(size, target):
    for kind in ("paper", "depthwise", "linear"):
        module = coarse_block.build_coarse(
            plan(kind, space(2, size, size), space(3, target, target)), None, first=0, last=0, seed=0
        )
        assert module(torch.randn(2, 2, size, size)).shape == (2, 3, target, target)


def test_coarse_units_follow_other_image_sizes():
    module = coarse_block.build_coarse(plan("paper", STAGES[0], STAGES[1], count=2), None, first=0, last=0, seed=0)
    assert module(torch.randn(2, 64, 40, 33)).shape == (2, 128, 20, 17)


def test_a_unit_at_its_start_keeps_the_scale():
    """He's variance: the branch says something of the size of one, whatever the size of the residual."""
    for kind in ("paper", "depthwise"):
        x = space(64, 16, 16)
        module = coarse_block.build_coarse(plan(kind, x, x), None, first=0, last=0, seed=0)
        r = torch.randn(8, 64, 16, 16)
        for scale in (0.1, 1.0, 100.0):
            branch = module(scale * r) - scale * r
            assert branch.var().item() == pytest.approx(1.0, rel=0.35)
        assert (module.unit1.skip(r) == r).all()


# -------------------------------------------------------------------------------------------------- blocks of its own


@pytest.fixture(scope="module")
def chain():
    return find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))


def test_block_choice(chain):
    blocks = chain.blocks  # three stages of three, the first block of the second and third stage changes the space
    assert len(blocks) == 9
    assert coarse_block.block_choice(blocks[3:6], 1) == (0,)
    assert coarse_block.block_choice(blocks[3:6], 2) == (0, 1)
    assert coarse_block.block_choice(blocks[3:6], 9) == (0, 1, 2)
    assert coarse_block.block_choice(blocks[4:6], 1) == (0,)
    assert coarse_block.block_choice(blocks[2:9], 2) == (1, 4)  # both transitions, nothing of the stages
    assert coarse_block.block_choice(blocks[2:9], 3) == (1, 2, 4)


def test_block_copies_are_fresh_and_leave_the_model_alone(chain):
    model = chain.capture.model
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    segment = plan("block", chain.blocks[3].x, chain.blocks[5].y, count=2, j=2)
    one, same = (coarse_block.build_coarse(segment, chain, first=3, last=5, seed=7) for _ in range(2))
    other = coarse_block.build_coarse(segment, chain, first=3, last=5, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(parameter.data_ptr() in owned for parameter in one.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    originals = dict(model.named_parameters())
    for name, parameter in one.named_parameters():
        found = originals[name.split(".", 2)[2]]
        if parameter.ndim > 1:  # other weights on the same scale
            assert not torch.equal(parameter, found)
            torch.testing.assert_close(parameter.std(), found.std())
        else:  # norms at one and zero
            assert torch.equal(parameter, found)
    r = torch.randn(2, *segment.x.shape, requires_grad=True)
    one(r).square().sum().backward()
    assert all(parameter.grad is not None for parameter in one.parameters())
    assert one(r).shape == (2, *segment.y.shape)
    assert not coarse_block.takes_context(one)
    assert chain.blocks[3].name in str(one)


def test_real_fields_of_a_small_resnet(chain):
    """Units on captured blocks: each stage of ResNet-20 sees 5 + 2·8 of 32 pixels, and three units see as much."""
    fields = receptive_fields(chain)
    assert coarse_block.units_for("paper", chain, fields, 3) == 3
    assert coarse_block.units_for("block", chain, fields, 3) == 1  # the blocks themselves would cost as much as g


class Gate(nn.Module):
    """A block that reads the mask next to the value, and has parameters of every sort."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))
        self.table = nn.Parameter(0.02 * torch.randn(width) + 3)

    def forward(self, x, mask):
        return x + self.scale * self.linear(self.norm(x) + self.table) * mask


class Gated(nn.Module):
    def __init__(self, width=8, depth=6):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.layers = nn.ModuleList(Gate(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x, mask):
        mask = mask.unsqueeze(-1).to(x.dtype)
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def test_context_is_passed_through_and_structure_is_kept():
    torch.manual_seed(0)
    model = Gated()
    inputs = (torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    chain = find_blocks(capture(model, inputs))
    x = chain.blocks[2].x
    module = coarse_block.build_coarse(plan("block", x, x, count=2), chain, first=2, last=4, seed=0)
    assert coarse_block.takes_context(module)
    assert len(module.blocks) == 2
    r, mask = torch.randn(2, *x.shape), inputs[1].unsqueeze(-1).float()
    assert torch.equal(module(r, torch.zeros_like(mask)), r)
    assert not torch.equal(module(r, mask), r)
    named = dict(module.named_parameters())
    scales = [value for name, value in named.items() if name.endswith("scale")]
    tables = [value for name, value in named.items() if name.endswith("table")]
    assert all(bool((value == 1e-6).all()) for value in scales)
    assert len(tables) == 2
    assert not torch.equal(tables[0], tables[1])
    assert all(2.9 < value.mean().item() < 3.1 and value.std().item() < 0.05 for value in tables)


def test_blocks_on_meta_stay_there():
    with torch.device("meta"):
        model = resnet20()
    chain = find_blocks(capture(model, torch.randn(2, 3, 32, 32, device="meta")))
    with torch.device("meta"):
        segment = plan("block", chain.blocks[3].x, chain.blocks[5].y, count=2)
        module = coarse_block.build_coarse(segment, chain, first=3, last=5, seed=0)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_exact_is_the_segment_itself():
    assert coarse_block.build_coarse(plan("exact", IMAGE, IMAGE), None, first=0, last=0, seed=0) is None


# ---------------------------------------------------------------------------------------------------- custom builders


def build_custom(chain, builder):
    segment = plan("custom", chain.blocks[3].x, chain.blocks[5].y, j=2)
    return coarse_block.build_coarse(segment, chain, first=3, last=5, seed=0, coarse=builder)


def test_custom_builder(chain):
    asked = []

    def builder(segment, x_shape, y_shape):
        asked.append((x_shape, y_shape))
        return nn.Sequential(nn.Conv2d(x_shape[0], y_shape[0], 3, 2, 1), nn.BatchNorm2d(y_shape[0]), nn.Dropout())

    state = torch.get_rng_state()
    module = build_custom(chain, builder)
    assert asked == [((16, 32, 32), (32, 16, 16))]
    assert torch.equal(torch.get_rng_state(), state)
    assert module[1].num_batches_tracked == 0  # the check ran on a copy
    assert bool((module[1].running_var == 1).all())
    assert all(type(tensor) in (nn.Parameter, torch.Tensor) for tensor in module.state_dict(keep_vars=True).values())
    assert torch.equal(module[0].weight, build_custom(chain, builder)[0].weight)
    assert coarse_block.kind_for(builder, IMAGE, IMAGE) == ("custom", "")


def test_custom_builder_may_give_the_segment_itself_or_a_copy(chain):
    assert isinstance(build_custom(chain, lambda segment, x, y: segment), nn.Module)
    assert isinstance(build_custom(chain, lambda segment, x, y: copy.deepcopy(segment)), nn.Module)


def wrong_shape(segment, x_shape, y_shape):
    return nn.Conv2d(x_shape[0], 7, 1)


def does_not_run(segment, x_shape, y_shape):
    return nn.Linear(999, 3)


def no_module(segment, x_shape, y_shape):
    return "conv"


def gives_a_pair(segment, x_shape, y_shape):
    class Pair(nn.Module):
        def forward(self, r):
            return r, r

    return Pair()


@pytest.mark.parametrize(
    "builder, message",
    [
        (
            wrong_shape,
            (
                r"F\^2 of wrong_shape maps \(batch, 16, 32, 32\) to \(batch, 7, 32, 32\), but X_3 is 32×16×16; "
                r"it has to return a module \(batch, 16, 32, 32\) -> \(batch, 32, 16, 16\)"
            ),
        ),
        (does_not_run, r"F\^2 of does_not_run does not run: .*it has to return a module \(batch, 16, 32, 32\)"),
        (no_module, r"no_module gave str for F\^2; it has to return an nn.Module"),
        (gives_a_pair, r"gives_a_pair maps .* to tuple, but X_3"),
    ],
)
def test_custom_builders_that_do_not_fit(chain, builder, message):
    with pytest.raises(CoarseError, match=message):
        build_custom(chain, builder)


def test_names_and_fall_back():
    assert coarse_block.coarse_name("paper") == "paper"
    assert coarse_block.coarse_name(wrong_shape) == "wrong_shape"
    tokens, vector = space(197, 768, channel=1), space(512)
    assert coarse_block.kind_for("paper", *STAGES[:2]) == ("paper", "")
    assert coarse_block.kind_for("linear", tokens, tokens) == ("linear", "")
    for kind in ("paper", "depthwise"):
        for pair in ((tokens, tokens), (STAGES[0], vector), (vector, vector), (space(2, 3, 4, 5), space(2, 4, 4))):
            given_kind, note = coarse_block.kind_for(kind, *pair)
            assert given_kind == "block"
            assert kind in note


@pytest.mark.parametrize("wrong", ["papr", "depth", 3, None, ""])
def test_unknown_kind(wrong):
    with pytest.raises(
        CoarseError, match=r"no coarse kind .*; pass one of 'paper', 'depthwise', 'bottleneck', 'linear', 'block'"
    ):
        coarse_block.coarse_name(wrong)
    if wrong == "papr":
        with pytest.raises(CoarseError, match="did you mean 'paper'"):
            coarse_block.coarse_name(wrong)


@pytest.mark.parametrize("y", [space(8, 16, 16), space(8, 4, 4), space(12, 3, 5), space(8, 17, 40)])
@pytest.mark.parametrize("kind", ["paper", "depthwise"])
def test_many_units_are_counted_as_if_all_were_built(kind, y):
    x = space(8, 16, 16)
    for units in (1, 4, 7, 12):
        with torch.device("meta"):
            built = coarse_block.coarse_units(kind, x, y, units, 5)
        expected = sum(parameter.numel() for parameter in built.parameters()), count_module(built, x)
        assert coarse_block.coarse_cost(kind, x, y, units, 5) == expected
