"""Adapters between every pair of spaces: shapes, gradients, identity, cost, and what they say of themselves."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from pararealize.coarse.adapter import adapter_cost, build_adapter, describe_adapter
from tests.spaces import space, spaces

READS = {False: "input", True: "stem"}


def batch_of(source, size, **options):
    return torch.randn(size, *source.shape, dtype=getattr(torch, source.dtype), **options)


@settings(deadline=None, max_examples=100)
@given(spaces(), spaces(), st.booleans(), st.sampled_from([1, 5]))
@example(space(3, 32, 32), space(9, 3, channel=1), False, 5)
@example(space(9, 3, channel=1), space(3, 4, 4), True, 1)
@example(space(), space(3, 4, 4), False, 5)
@example(space(3, 4, 4), space(), False, 5)
@example(space(), space(), True, 1)
def test_every_pair_of_spaces(source, target, from_stem, batch):
    adapter = build_adapter(source, target, reads=READS[from_stem])
    x = batch_of(source, batch, requires_grad=True)
    y = adapter(x)
    assert y.shape == (batch, *target.shape)
    assert y.dtype == getattr(torch, target.dtype)
    assert y.is_contiguous()  # as what blocks read by view is
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for parameter in adapter.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    if from_stem and source.shape == target.shape and source.channel == target.channel and source.dtype == target.dtype:
        assert torch.equal(y, x)
    with torch.device("meta"):
        on_meta = build_adapter(source, target, reads=READS[from_stem])
    assert all(parameter.is_meta for parameter in on_meta.parameters())
    assert on_meta(x.detach().to("meta")).shape == y.shape
    parameters, cost = adapter_cost(source, target, reads=READS[from_stem])
    assert parameters == sum(parameter.numel() for parameter in adapter.parameters())
    assert cost.flops_forward > 0
    assert cost.flops_backward == (2 if from_stem else 1) * cost.flops_forward


@pytest.mark.parametrize(
    "source, target, recipe",
    [
        (space(3, 32, 32), space(64, 32, 32), "conv 1×1 3→64"),
        (space(3, 32, 32), space(256, 8, 8), "2 × max_pool 3×3/2 → conv 1×1 3→256"),
        (space(3, 224, 224), space(64, 7, 7), "5 × max_pool 3×3/2 → conv 1×1 3→64"),
        (space(64, 55, 55), space(192, 27, 27), "max_pool 3×3/2 → conv 1×1 64→192"),
        (space(3, 299, 299), space(8, 35, 35), "3 × max_pool 3×3/2 → average 38×38 to 35×35 → conv 1×1 3→8"),
        (space(2, 8, 32), space(4, 8, 8), "2 × max_pool 1×3/1×2 → conv 1×1 2→4"),
        (space(8, 7, 7), space(4, 28, 28), "conv 1×1 8→4 → repeat 7×7 to 28×28"),
        (space(96, 56, 56), space(7, 7, 768, channel=2), "3 × max_pool 3×3/2 → channels last → linear 96→768"),
        (space(197, 768, channel=1), space(197, 768, channel=1), "linear 768→768"),
        (space(3, 224, 224), space(197, 768, channel=1), None),
        (space(512,), space(10), "linear 512→10"),
        (space(5, 64), space(7, 16), "2 × max_pool 3/2 → conv 1×1 5→7"),
        (space(3, 8, 16, 16), space(4, 4, 8, 8), "max_pool 3×3×3/2 → conv 1×1×1 3→4"),
    ],
)  # fmt: skip
def test_recipes(source, target, recipe):
    text = describe_adapter(source, target)
    assert recipe is None or text == recipe
    printed = str(build_adapter(source, target, reads="input"))
    assert text in printed
    assert f"{source} → {target}" in printed


def test_identity_says_so():
    tokens = space(197, 768, channel=1)
    assert describe_adapter(tokens, tokens, reads="stem") == "linear 768→768, from the identity"
    assert "from the identity" in str(build_adapter(tokens, tokens, reads="stem"))


def test_other_image_sizes_follow_as_strided_layers_do():
    adapter = build_adapter(space(3, 32, 32), space(64, 8, 8), reads="input")
    assert adapter(torch.zeros(2, 3, 40, 48)).shape == (2, 64, 10, 12)
    assert adapter(torch.zeros(2, 3, 33, 33)).shape == (2, 64, 9, 9)  # ⌈⌈33/2⌉/2⌉, as two 3×3/2 convolutions give


def test_variance_is_kept():
    """No ReLU stands before the projection, so 1 / fan-in and not He's 2 / fan-in keeps a unit variance."""
    adapter = build_adapter(space(256, 8, 8), space(256, 8, 8), reads="input")
    assert adapter(torch.randn(16, 256, 8, 8)).var().item() == pytest.approx(1.0, rel=0.1)


def test_seed_and_name_fix_the_weights_and_the_callers_state_stays():
    source, target = space(3, 8, 8), space(4, 4, 4)
    before = torch.get_rng_state()
    keys = (1, "C2"), (1, "C2"), (1, "C3"), (2, "C2")
    built = [build_adapter(source, target, reads="input", seed=seed, name=name) for seed, name in keys]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [adapter.project.weight for adapter in built]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_cost_of_the_papers_adapter():
    """3×32×32 → 128×16×16: 16² points, 3·128 multiply-adds each, two FLOPs a multiply-add; backward one more."""
    image, interface = space(3, 32, 32), space(128, 16, 16)
    forward = 2 * 16 * 16 * 3 * 128
    for from_stem, backward in ((False, forward), (True, 2 * forward)):
        parameters, cost = adapter_cost(image, interface, reads=READS[from_stem])
        assert (parameters, cost.flops_forward, cost.flops_backward) == (3 * 128, forward, backward)


def test_max_pools_against_plain_torch():
    """The whole adapter against its definition, written out."""
    adapter = build_adapter(space(3, 32, 32), space(16, 8, 8), reads="input")
    x = torch.randn(2, 3, 32, 32)
    pooled = nn.functional.max_pool2d(nn.functional.max_pool2d(x, 3, 2, 1), 3, 2, 1)
    expected = torch.einsum("oi,bihw->bohw", adapter.project.weight[:, :, 0, 0], pooled)
    torch.testing.assert_close(adapter(x), expected)
    assert math.prod(adapter.project.weight.shape) == 48


def test_half_precision_interfaces():
    adapter = build_adapter(space(3, 16, 16), space(4, 8, 8, dtype="bfloat16"), reads="input")
    assert adapter(torch.randn(2, 3, 16, 16)).dtype == torch.bfloat16
