"""What a run is asked for: plain data, different wherever a run that goes on would be another one."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from pararealize import Recipe, layer_parallel
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import CheckpointError, RecipeError
from pararealize.models import resnet20
from pararealize.multigrid.monitor import Monitor
from pararealize.train.request import RunSettings, describe_request
from pararealize.train.structure import structure_facts
from tests.training import chain, network, samples

SETTINGS = RunSettings(seed=3, log_every=10, checkpoint_every=None, keep=2)


def request(net, data=None, monitor=None):
    return describe_request(
        net, data or samples(), Recipe(), SETTINGS, TrainingProcesses(), about={"why": "a test"}, monitor=monitor
    )


def test_it_is_plain_data():
    described = request(network())
    assert json.loads(json.dumps(described)) == described
    assert described["about"] == {"why": "a test"}
    assert described["recipe"] == Recipe().to_dict()
    assert (described["seed"], described["log_every"]) == (3, 10)
    assert described["data"]["samples"] == [40, 13]
    assert described["plan"]["n"] == 3
    assert "monitor" not in described


def test_the_same_request_twice_and_with_other_weights():
    net = network()
    before = request(net)
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert request(net) == before


@pytest.mark.parametrize("change", [
    {"labels": samples().labels.flip(0)}, {"test_labels": samples().test_labels.flip(0)}, {"classes": 4}, {"seed": 1},
    {"batch_size": 9}, {"name": "others"},
])  # fmt: skip
def test_other_data(change):
    data = dataclasses.replace(samples(), **change)
    assert request(network(), data)["data"] != request(network())["data"]


def test_other_networks():
    networks = [chain(4), chain(5), network(), network(2)]
    digests = {request(net)["network"]["digest"] for net in networks}
    assert len(digests) == 4
    assert request(chain(4))["network"]["tensors"] == len(chain(4).state_dict())
    assert request(chain(4))["plan"] is None


def test_a_monitor_is_a_part_of_it():
    net = layer_parallel(resnet20().eval(), coarsening=3)
    assert request(net, monitor=Monitor(net, every=7))["monitor"]["every"] == 7


def test_ranks_describe_one_network():
    """Each knows the shapes of its own part; together they are those of the whole network, whatever the order."""
    whole = chain(2)
    state = {name: list(value.shape) for name, value in whole.state_dict().items()}
    facts = structure_facts(whole)
    parts = [(dict(list(values.items())[3:]), dict(list(facts.items())[:9])) for values in (state,)]
    parts.append((dict(list(state.items())[:3]), dict(list(facts.items())[9:])))

    class Two:
        def gather(self, fact):
            return parts

    described = describe_request(whole, samples(), Recipe(), SETTINGS, Two(), about={}, monitor=None)
    assert described | {"about": {}} == request(whole) | {"about": {}}


def test_a_state_that_is_more_than_tensors_is_refused():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 0}

    with pytest.raises(CheckpointError, match="_extra_state no tensors"):
        request(nn.Sequential(Counting(2, 2)))


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every", "keep"])
def test_numbers_out_of_range(name):
    with pytest.raises(RecipeError, match=f"{name} is 0; pass an integer of at least 1"):
        dataclasses.replace(SETTINGS, **{name: 0})
