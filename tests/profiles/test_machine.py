"""This machine as a profile: figures that can be, quickly."""

from __future__ import annotations

import pytest
import torch

from pararealize.errors import DeviceError
from pararealize.profiles import DeviceProfile, Link, machine, measure_device


def test_the_cpu(monkeypatch):
    monkeypatch.setattr(machine, "SECONDS", 0.002)
    monkeypatch.setattr(machine, "SIDE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(machine, "VALUES", {"cpu": 2**14, "cuda": 2**14})
    state, said = torch.get_rng_state(), []
    link = Link(name="loop", latency=1e-4, bandwidth=1e9)
    profile = measure_device("cpu", name="here", links=(link,), report=said.append)
    assert torch.equal(state, torch.get_rng_state())
    assert DeviceProfile.from_json(profile.to_json()) == profile
    assert 1e6 < profile.peaks.float32 < 1e13
    assert 1e6 < profile.bandwidth < 1e13
    assert 1e-8 < profile.launch == profile.launch_captured < 1e-2
    assert 1e-6 < profile.step < 1
    assert profile.memory > 1e8
    assert (profile.name, profile.link()) == ("here", link)
    assert said[0] == "measuring products in float32"


@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
def test_devices_that_are_not_there(device):
    with pytest.raises(DeviceError, match=f"device '{device}' is"):
        measure_device(device)
