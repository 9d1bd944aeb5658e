"""What a run is asked for: plain data, different wherever a run that goes on would be another one."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pararealize import Recipe, fit, layer_parallel
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import AgreedError, CheckpointError, RecipeError
from pararealize.models import resnet20
from pararealize.multigrid.monitor import Monitor
from pararealize.train.request import RunSettings, describe_request
from pararealize.train.structure import structure_facts
from tests.rank_comparison import mesh_of
from tests.ranks import on_ranks
from tests.training import chain, network, samples

FOLDERS = "run", "another"
# an argument of fit, its value on the first rank and on the second, and what all of them say
DIFFERENT = {
    "recipe": (Recipe(epochs=1, lr=0.1), Recipe(epochs=1, lr=0.2), "recipe.lr is 0.1 on rank 0, 0.2 on rank 1"),
    "data": (samples(), samples(seed=1), "data.seed is 0 on rank 0, 1 on rank 1"),
    "seed": (0, 1, "seed is 0 on rank 0, 1 on rank 1"),
    "checkpoint_every": (None, 3, "checkpoint_every is None on rank 0, 3 on rank 1"),
    "folder": (*FOLDERS, "folder is .*run on rank 0, .*another on rank 1"),
    "resume": (True, False, "resume is True on rank 0, False on rank 1"),
    "about": ({}, {"why": "a test"}, "about"),
}
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


def asked_differently(folder):
    """What this rank hears where the two are asked for different things; then both train."""
    stage = network(n=2, dropout=0.0).distribute(mesh_of(2), timeout=60)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    said = {}
    for name, values in DIFFERENT.items():
        asked = {"data": samples(), "recipe": Recipe(epochs=1), "folder": FOLDERS[0], name: values[stage.rank]}
        with pytest.raises(AgreedError) as caught:
            fit(stage, **{**asked, "folder": f"{folder}/{asked['folder']}"})
        said[name] = str(caught.value)
    untouched = all(torch.equal(value, before[name]) for name, value in stage.state_dict().items())
    assert not any(Path(folder).iterdir())
    history = fit(stage, samples(), Recipe(epochs=1), folder=f"{folder}/run")
    return said, untouched, len(history.epochs)


def test_ranks_that_are_asked_for_different_things_say_so_before_anything_is_written(tmp_path):
    for said, untouched, epochs in on_ranks(2, asked_differently, str(tmp_path)):
        for name, (_, _, pattern) in DIFFERENT.items():
            assert re.search(pattern, said[name]), (name, said[name])
        assert untouched
        assert epochs == 1
