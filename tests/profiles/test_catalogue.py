"""The published figures by name, as the docstring has them, and what a wrong name is told."""

from __future__ import annotations

import pytest

from pararealize.errors import ProfileError
from pararealize.profiles import PROFILES, catalogue, device_profile


def test_every_profile_is_named_with_its_source():
    for name, profile in PROFILES.items():
        assert f"\n{name}" in (catalogue.__doc__ or "")
        assert (profile.name, device_profile(name), device_profile(profile)) == (name, profile, profile)
        assert profile.launch_captured <= profile.launch
        assert profile.source


def test_figures():
    h100, h200 = PROFILES["h100"], PROFILES["h200"]
    assert h200.bandwidth / h100.bandwidth == pytest.approx(4.8 / 3.35)
    assert h100.peak("bfloat16") > 10 * h100.peak("float32")


def test_wrong_names(tmp_path):
    with pytest.raises(ProfileError, match=r"no device profile 'H10' .did you mean 'h100'"):
        device_profile("H10")
    with pytest.raises(ProfileError, match="pass one of h100, h200, a100"):
        device_profile("abacus")
    with pytest.raises(ProfileError, match="cannot read the profile"):
        device_profile("mine.json")
    with pytest.raises(ProfileError, match="device is 3"):
        device_profile(3)
    path = PROFILES["h100"].save(tmp_path / "mine.json")
    assert device_profile(str(path)) == device_profile(path) == PROFILES["h100"]
