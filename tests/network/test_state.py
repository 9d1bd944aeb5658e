"""The original's state is known, noted when it changes, and taken from a checkpoint only where that fits."""

from __future__ import annotations

import copy

import pytest
import torch

from pararealize import PararealModule, pararealize
from pararealize.errors import CheckpointError
from pararealize.network.state import (
    changes_of,
    checked_state,
    note_changes,
    note_weights,
    original_state,
)
from tests.models import SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)


def small(n: int = 3) -> PararealModule:
    return pararealize(SmallResNet(), n=n, example_inputs=IMAGES)


def test_a_checkpoint_of_one_n_loads_into_another() -> None:
    six, two = small(6), small(2)
    for parameter in six.parameters():
        parameter.data.add_(1)
    two.load_original_state_dict(six.state_dict())
    for key, value in six.original_state_dict().items():
        assert torch.equal(two.state_dict()[key], value)


def test_every_fault_of_a_checkpoint_is_listed() -> None:
    net = small(2)
    before = copy.deepcopy(net.state_dict())
    state = {**small(6).state_dict(), "fc.bias": torch.zeros(2), "new.weight": torch.zeros(1)}
    del state["conv.weight"]
    found = r"1 missing \(conv.weight\), 1 unknown \(new.weight\), 1 of another shape or type \(fc.bias: \(2,\)"
    with pytest.raises(CheckpointError, match=found):
        net.load_original_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_deeper_networks_checkpoint_is_not_taken() -> None:
    with pytest.raises(CheckpointError, match=r"of its keys 28 unknown \(layer1\.3\.conv1\.weight"):
        small(2).load_original_state_dict(SmallResNet(depth=5).state_dict())


@pytest.mark.parametrize("given", [None, [1], {1: torch.zeros(1)}], ids=["nothing", "a list", "no names"])
def test_no_checkpoint(given: object) -> None:
    with pytest.raises(CheckpointError, match="no dict of tensors by name"):
        small(2).load_original_state_dict(given)  # type: ignore[arg-type]


def test_weights_on_the_meta_device_are_no_weights() -> None:
    net = small(2)
    state = {key: value.to("meta") for key, value in original_state(net).items()}
    with pytest.raises(CheckpointError, match="without values, on the meta device, there"):
        checked_state(net, state, "SmallResNet")
    assert list(checked_state(net.to("meta"), state, "SmallResNet")) == list(state)


def test_the_originals_state_is_as_it_is_now() -> None:
    model = SmallResNet()
    net = pararealize(model, n=3, example_inputs=IMAGES)
    assert list(original_state(net)) == list(model.state_dict())
    with torch.no_grad():
        net.get_parameter("fc.bias").fill_(7)
    assert original_state(net)["fc.bias"].eq(7).all()
    assert not model.state_dict()["fc.bias"].eq(7).any()


def test_notes_go_into_copies_and_end_with_the_originals_weights() -> None:
    net = small()
    note_changes(net, {"statistics", "weights"})
    note_weights(net, "a digest")
    twin = copy.deepcopy(net)
    assert changes_of(twin) == {"statistics", "weights"}
    note_changes(net, ())
    assert changes_of(twin) == {"statistics", "weights"}
    assert twin.saved_record().conversion.weights == "a digest"
    twin.load_original_state_dict(small(2).state_dict())
    assert not changes_of(twin)
    assert twin.saved_record().conversion.weights != "a digest"
