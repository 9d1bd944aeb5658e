"""A profile as a file: what was written comes back, and what cannot be is refused with every fault."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.errors import OutputError, ProfileError
from pararealize.profiles import PROFILES, DeviceProfile, HostCosts, Link, Peaks

amounts = st.floats(1e-3, 1e20)


@settings(max_examples=15)
@given(amounts, amounts, st.none() | amounts, st.lists(amounts, max_size=2))
def test_round_trip(flops, bandwidth, half, links):
    profile = DeviceProfile(
        name="x", source="", peaks=Peaks(float32=flops, float16=half), bandwidth=bandwidth, memory=1.0, launch=0.0,
        launch_captured=0.0,
        links=tuple(Link(name=str(i), latency=0.0, bandwidth=value) for i, value in enumerate(links)),
    )  # fmt: skip
    assert DeviceProfile.from_json(profile.to_json()) == profile
    assert hash(profile) == hash(DeviceProfile.from_json(profile.to_json()))
    assert "x: " in str(profile)


def test_what_hosts_take_is_kept_and_shown():
    host = HostCosts(message=1e-4, step=2e-3, microbatch=3e-4, copies=1e-3, parameter=2e-5)
    link = Link(name="here", latency=1e-5, bandwidth=1e9, overlap=0.3, host=host)
    profile = dataclasses.replace(PROFILES["cpu"], step=5e-5, links=(link,))
    assert DeviceProfile.from_json(profile.to_json()) == profile
    lines = [" ".join(line.split()) for line in str(profile).splitlines()]
    assert lines[-8:] == [
        "loss of a step 50 µs",
        "here 10 µs, 1.00GB/s",
        "here, sums beside computing 30 %",
        *(f"here, host: {what}" for what in ("message 100 µs", "step 2 ms", "microbatch 300 µs")),
        *(f"here, host: {what}" for what in ("copies 1 ms", "parameter 20 µs")),
    ]
    assert "host" not in str(PROFILES["a100"])


def test_files(tmp_path):
    path = PROFILES["a100"].save(tmp_path / "a100.json")
    assert DeviceProfile.load(path) == PROFILES["a100"]
    with pytest.raises(OutputError, match="cannot write the profile"):
        PROFILES["a100"].save(tmp_path / "none" / "a100.json")
    with pytest.raises(ProfileError, match="cannot read the profile"):
        DeviceProfile.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 1}, "no device profile of version 2 (its version is 1)"),
        ({"bandwidth": -1}, "bandwidth"),
        ({"memory": "much"}, "memory"),
        ({"peaks": {}}, "peaks.float32"),
        ({"more": 1}, "more"),
        ({"links": [{"name": "a", "latency": 0, "bandwidth": 1}] * 2}, "two links have one name: a, a"),
    ],
)
def test_what_cannot_be(change, message):
    data = json.loads(PROFILES["p40"].to_json()) | change
    with pytest.raises(ProfileError) as raised:
        DeviceProfile.from_json(json.dumps(data))
    assert message in str(raised.value)


def test_no_json_and_no_profile():
    for text in ("{", "[]", "{}"):
        with pytest.raises(ProfileError):
            DeviceProfile.from_json(text)
    with pytest.raises(ProfileError, match="no DeviceProfile can be made so"):
        dataclasses.replace(PROFILES["p40"], launch=-1.0)


def test_peaks_and_links_by_name():
    p40 = PROFILES["p40"]
    assert p40.peak("tf32") == p40.peak("float32")
    with pytest.raises(
        ProfileError, match="the profile of p40 has no peak for bfloat16, and for float32, float64, float16"
    ):
        p40.peak("bfloat16")
    with pytest.raises(ProfileError, match="the profile of p40 has no link 'nvlink'; it has pcie, ethernet"):
        p40.link("nvlink")
    link = Link(name="a", latency=1.0, bandwidth=2.0, reduce_bandwidth=4.0)
    assert (link.transfer.seconds(2), link.reduction.seconds(4)) == (2.0, 2.0)
