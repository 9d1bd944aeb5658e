"""What ``network.json`` says: modes and frozen parameters by name, versions."""

import dataclasses

import torch
from torch import nn

from pararealize.saving.model_source import ModelSource
from pararealize.saving.network_record import (
    Conversion,
    NetworkRecord,
    modes_of,
    version_differences,
    versions,
    weights_digest,
)


def record(**facts):
    source = ModelSource(kind="given", class_name="Sequential")
    fixed = {"model": source, "converted": False, "conversion": Conversion(), "has_weights": True}
    return NetworkRecord(**fixed, versions=versions(), **facts)


def test_modes_come_back():
    net, other = (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2))) for _ in range(2))
    net.eval()
    net[1][0].train()
    net[0].weight.requires_grad_(False)
    record(**modes_of(net)).give_modes(other)
    expected = {"training": False, "other_modes": ["1.0"], "frozen": ["0.weight"], "channels_last": []}
    assert modes_of(other) == modes_of(net) == expected


def test_parts_of_several_ranks_are_joined():
    parts = [
        {"training": True, "other_modes": ["a"], "frozen": []},
        {"training": True, "other_modes": [], "frozen": ["b"]},
    ]
    joined = record(**parts[0]).joined(parts)
    assert (joined.training, joined.other_modes, joined.frozen) == (True, ["a"], ["b"])


def test_versions():
    known = versions()
    assert version_differences(known) == ""
    assert version_differences(known | {"torch": "1.0"}) == f"torch 1.0 there, {torch.__version__} here"
    assert dataclasses.asdict(record(**modes_of(nn.Linear(1, 1))))["versions"] == known


def test_a_digest_sees_every_change_of_values_and_none_of_layout():
    state = {
        "w": torch.randn(64, 3, 20, 20),
        "k": torch.arange(5),
        "h": torch.randn(9).half(),
        "c": torch.randn(2) + 1j,
    }
    before = weights_digest(state)
    assert weights_digest({name: value.clone() for name, value in reversed(state.items())}) == before
    assert weights_digest(state | {"w": state["w"].to(memory_format=torch.channels_last)}) == before
    for name, value in state.items():
        changed = value.clone()
        changed.view(-1)[-2 if name == "w" else 0] += 1  # of the large one no sample
        assert weights_digest(state | {name: changed}) != before
    assert weights_digest(state | {"h": state["h"].float()}) != before
