"""What a user asks of a plan: every fault is found, and what was left out is filled in."""

import pytest
import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.errors import CutError, DeviceError, PlanError, SourceError
from pararealize.planning.arguments import (
    Faults,
    adapter_source,
    block_places,
    check_count,
    device_fault,
    device_names,
    named_starts,
)
from pararealize.tracing.front_end import capture
from tests.models import MaskedTransformer, Perceptron, SmallResNet


@pytest.fixture(scope="module")
def images():
    return find_blocks(capture(SmallResNet(), torch.randn(2, 3, 8, 8)))


@pytest.fixture(scope="module")
def vectors():
    return find_blocks(capture(Perceptron(), torch.randn(2, 8)))


@pytest.fixture(scope="module")
def tokens():
    return find_blocks(capture(MaskedTransformer(), torch.randint(0, 11, (2, 5))))


def refuse(error):
    raise error


def test_all_faults_are_raised_as_one_of_the_first_ones_class():
    faults = Faults()
    assert faults.collect(lambda: 3) == 3
    faults.raise_all()
    assert faults.collect(lambda: refuse(PlanError("too many"))) is None
    assert faults.collect(lambda: refuse(CutError("no such block"))) is None
    with pytest.raises(PlanError, match=r"^too many\nno such block$"):
        faults.raise_all()


def test_an_error_of_ours_is_no_fault_of_the_users():
    with pytest.raises(ZeroDivisionError):
        Faults().collect(lambda: 1 / 0)


@pytest.mark.parametrize("n", [0, -1, 99, 2.0, True, "3", None])
def test_a_count_of_segments_that_the_network_cannot_have(images, n):
    blocks = len(images.blocks)
    with pytest.raises(PlanError, match=f"SmallResNet has {blocks} blocks.*from 1 to {blocks}"):
        check_count(images, n)


def test_where_a_network_has_too_few_blocks_the_places_that_cannot_be_cut_are_named(images):
    check_count(images, len(images.blocks))
    with pytest.raises(PlanError, match="cut points"):
        check_count(images, len(images.blocks) + 1)


def test_adapters_read_the_input_where_it_is_as_the_blocks_values(images, vectors, tokens):
    assert [adapter_source(chain, None) for chain in (images, vectors, tokens)] == ["input", "input", "stem"]
    assert adapter_source(images, "stem") == "stem"
    assert adapter_source(images, "input") == "input"
    patches = nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(48, 48), nn.ReLU()) for _ in range(3)))
    assert adapter_source(find_blocks(capture(patches, torch.randn(2, 3, 4, 4))), None) == "stem"
    assert adapter_source(images, None, sequential=True) == "stem"
    with pytest.raises(SourceError, match=r"contradict each other: block layer1\.0 is sequential"):
        adapter_source(images, "input", sequential=True)


def test_sources_that_are_none(images, tokens):
    with pytest.raises(SourceError, match="'output' is unknown"):
        adapter_source(images, "output")
    with pytest.raises(SourceError, match="needs one floating-point input"):
        adapter_source(tokens, "input")


def test_devices_wrap_round_and_stay_where_the_model_is(images):
    assert device_names(images, None, 3) == ("cpu",) * 3
    assert device_names(images, "meta", 2) == ("meta", "meta")
    assert device_names(images, ["cpu", torch.device("meta")], 3) == ("cpu", "meta", "cpu")
    assert len(device_names(images, None, "three")) == 1, "a fault of n is reported by itself"


def test_every_device_that_is_not_there_is_named(images):
    with pytest.raises(DeviceError, match=r"(?s)'gpu' is unknown.*'cuda:99' is not there"):
        device_names(images, ["cpu", "gpu", "cuda:99", "gpu"], 4)
    with pytest.raises(DeviceError, match="devices is empty"):
        device_names(images, [], 2)
    assert device_fault("cpu") == device_fault(torch.device("meta")) == ""


def test_cuts_by_name(images):
    names = [block.name for block in images.blocks]
    assert named_starts(images, "cost") is None
    assert named_starts(images, "paper") is None
    assert named_starts(images, [names[2], names[1]]) == (1, 2)
    with pytest.raises(CutError, match="'costs' is unknown"):
        named_starts(images, "costs")


@pytest.mark.parametrize(
    "names, message",
    [
        (["layer2.O", "stem"], "cuts: 'layer2.O' is not the name of a block; close ones: layer2.2, layer2.1, layer2.0"),
        (["layer2.O", "stem"], "cuts: 'stem' is not the name of a block; blocks run from layer1.0 to layer2.2"),
        (["layer2.0", "layer2.0"], "cuts: 'layer2.0' stands more than once"),
    ],
)
def test_names_that_are_none(images, names, message):
    with pytest.raises(CutError) as raised:
        named_starts(images, names)
    assert message in str(raised.value)


def test_names_may_have_to_stand_in_order(images):
    first, second = images.blocks[0].name, images.blocks[1].name
    assert block_places(images, [second, first], "windows") == [1, 0]
    assert block_places(images, [first, second], "windows", ordered=True) == [0, 1]
    with pytest.raises(CutError, match=r"windows: .* are not in the order of the network's blocks"):
        block_places(images, [second, first], "windows", ordered=True)
