"""Seconds by the roofline: sums by hand, limits, and monotone in everything that a device is fast by."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.fields.field import receptive_fields
from pararealize.errors import ProfileError
from pararealize.models import resnet20
from pararealize.planning.search import plan_segments
from pararealize.profiles import PROFILES, Peaks, Roofline
from pararealize.tracing.front_end import capture


@pytest.fixture(scope="module")
def roofline():
    with torch.device("meta"):
        chain = find_blocks(capture(resnet20(), torch.empty(2, 3, 32, 32, device="meta"), check=False))
    made = Roofline(chain, PROFILES["a100"])
    assert made.operations
    assert made.counts
    return made


def with_profile(roofline, **changes):
    """The same network on another device, without counting again."""
    other = dataclasses.replace(roofline, profile=dataclasses.replace(roofline.profile, **changes))
    other.__dict__.update(operations=roofline.operations, counts=roofline.counts)
    return other


def test_the_whole_is_the_sum_of_its_operations(roofline):
    profile, total = roofline.profile, 0.0
    for part in roofline.operations.parts:
        for one in (*part.forward, *part.backward):
            peak = profile.peaks.tf32 if one.kind == "tf32" else profile.peaks.float32
            moved = 8 * one.bytes_sample + one.bytes_fixed
            total += max(8 * one.flops / peak, moved / profile.bandwidth) + one.kernels * profile.launch
    assert roofline.costs(8).total == pytest.approx(total)


@settings(max_examples=12)
@given(st.integers(1, 64), st.floats(1.0, 100.0), st.sampled_from(["bandwidth", "launch", "peaks"]))
def test_faster_devices_take_less(roofline, batch, factor, what):
    profile = roofline.profile
    changes = {
        "bandwidth": {"bandwidth": profile.bandwidth * factor},
        "launch": {"launch": profile.launch / factor},
        "peaks": {"peaks": Peaks(float32=profile.peaks.float32 * factor, tf32=(profile.peaks.tf32 or 1) * factor)},
    }
    assert with_profile(roofline, **changes[what]).costs(batch).total <= roofline.costs(batch).total * (1 + 1e-12)
    assert roofline.costs(batch).total <= roofline.costs(batch + 1).total


def test_limits(roofline):
    """All launches at batch 1, all memory at a large one: twice the batch is twice the time."""
    kernels = sum(one.kernels for part in roofline.operations.parts for one in (*part.forward, *part.backward))
    launching = kernels * roofline.profile.launch
    assert launching < roofline.costs(1).total < 1.5 * launching
    assert roofline.costs(2**15).total == pytest.approx(2 * roofline.costs(2**14).total, rel=0.02)
    captured = dataclasses.replace(roofline, captured=True)
    captured.__dict__.update(operations=roofline.operations, counts=roofline.counts)
    assert captured.costs(1).total < roofline.costs(1).total


def test_plans_price_what_they_add_likewise(roofline):
    chain = roofline.chain
    costs = roofline.costs(2)
    plan = plan_segments(chain, receptive_fields(chain), costs, 3, coarse="paper")
    assert plan.unit == "seconds"
    assert plan.serial == pytest.approx(costs.total)
    assert all(row.cost_forward > roofline.profile.launch for row in (*plan.adapters, *plan.coarse_blocks))
    again = plan_segments(chain, receptive_fields(chain), roofline.costs(2), 3, coarse="paper")
    assert again == plan


def test_an_element_type_that_the_device_has_not(roofline):
    with torch.device("meta"):
        model, x = resnet20().bfloat16(), torch.empty(2, 3, 32, 32, device="meta").bfloat16()
        chain = find_blocks(capture(model, x, check=False))
    with pytest.raises(ProfileError, match="no peak for bfloat16"):
        Roofline(chain, PROFILES["p40"]).costs(2)
