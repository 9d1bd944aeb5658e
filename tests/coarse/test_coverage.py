"""How many units and how wide a kernel: the paper's numbers, brute force, and a captured network."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.fields.field import ReceptiveField, receptive_fields
from pararealize.coarse import coverage, kinds
from pararealize.models import resnet20
from pararealize.tracing.front_end import capture
from tests.spaces import space

STAGES = (space(64, 32, 32), space(128, 16, 16), space(256, 8, 8))


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
    assert [kinds.units_for("paper", chain, fields, n) for n in (3, 6, 12, 18, 24)] == [4, 2, 1, 1, 1]
    # the network's own bottlenecks have one 3×3 convolution each: 3 + 7·4 = 31 takes eight of them
    assert [kinds.units_for("block", chain, fields, n) for n in (3, 6, 12, 24)] == [8, 4, 2, 1]
    assert [kinds.units_for(kind, chain, fields, 3) for kind in ("depthwise", "linear", "exact", "custom")] == [1] * 4


def test_units_of_a_network_of_one_stage_and_of_a_small_field():
    one = space(8, 14, 14)
    chain, fields = staged_chain((one, one, 20, 9))
    assert kinds.units_for("paper", chain, fields, 1) == 3  # at stride 1, u units see 1 + 4u of 14 pixels
    assert kinds.units_for("paper", chain, fields, 4) == 1


@given(st.integers(1, 40), st.integers(0, 3))
def test_units_to_see_against_the_gradient_of_a_stack(size, steps):
    """The formula against brute force: which inputs a stack of 3-wide convolutions reads."""
    count = coverage._units_to_see(size, steps)
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
    assert coverage.kernel_for(space(8, *extent), field) == kernel


def test_real_fields_of_a_small_resnet():
    """Units on captured blocks: each stage of ResNet-20 sees 5 + 2·8 of 32 pixels, and three units see as much."""
    chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
    fields = receptive_fields(chain)
    assert kinds.units_for("paper", chain, fields, 3) == 3
    assert kinds.units_for("block", chain, fields, 3) == 1  # the blocks themselves would cost as much as g
