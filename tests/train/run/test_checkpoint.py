"""A run between two steps: written and read, to the bit, with every random state; damaged ones."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import CheckpointError
from pararealize.train.run.checkpoint import gather_run_state, load_run_state, read_run_state, write_run_state
from tests.training import WIDTH, network, same


def trained(seed=0, optimizer="adamw"):
    """A network and its optimiser after three steps."""
    net = network()
    kinds = {"adamw": torch.optim.AdamW, "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}
    made = kinds[optimizer](net.parameters())
    torch.manual_seed(seed)
    for _ in range(3):
        advance(net, made)
    return net, made


def advance(net, optimizer):
    optimizer.zero_grad()
    net(torch.randn(4, WIDTH)).square().mean().backward()
    optimizer.step()


def kept(tmp_path, net, optimizer, scaler=None, processes=None, **facts):
    folder = tmp_path / "state"
    folder.mkdir()
    write_run_state(folder, gather_run_state(net, optimizer, scaler, processes or TrainingProcesses(), facts))
    return folder


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_run_goes_on_to_the_bit(tmp_path, kind):
    net, optimizer = trained(optimizer=kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale(torch.ones(()))
    folder = kept(tmp_path, net, optimizer, scaler, step=3)
    advance(net, optimizer)
    drawn = torch.rand(3), random.random(), np.random.random()
    other, its = trained(seed=1, optimizer=kind)
    its_scaler = torch.amp.GradScaler("cpu")
    plain = read_run_state(folder)
    assert plain["step"] == 3
    assert load_run_state(folder, plain, other, its, its_scaler, TrainingProcesses())
    advance(other, its)
    assert same(net, other)
    assert torch.equal(torch.rand(3), drawn[0])
    assert (random.random(), np.random.random()) == drawn[1:]
    assert its_scaler.get_scale() == 512.0


def test_nothing_is_pickled(tmp_path):
    folder = kept(tmp_path, *trained())
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "state.safetensors", "state.json"}
    json.loads((folder / "state.json").read_text())


def test_other_ranks_have_no_random_state(tmp_path):
    net, optimizer = trained()
    folder = kept(tmp_path, net, optimizer)
    plain = read_run_state(folder) | {"world": 2}
    before = torch.get_rng_state()
    assert not load_run_state(folder, plain, net, optimizer, None, TrainingProcesses())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("text, told", [
    ("{", "cannot be read .*remove this folder, and the run goes on from the one before"),
    ("{}", "KeyError"),
    ('{"schema": "pararealize.run-state", "version": 9}', "version 9"),
])  # fmt: skip
def test_damaged_states(tmp_path, text, told):
    folder = kept(tmp_path, *trained())
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=told):
        read_run_state(folder)


def cut_off(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def nameless(file):
    save_file({"momentum": torch.zeros(3)}, file)


@pytest.mark.parametrize("name, damage", [
    ("state.safetensors", cut_off),
    ("state.safetensors", nameless),
    ("state.safetensors", Path.unlink),
    ("weights.safetensors", cut_off),
    ("weights.safetensors", Path.unlink),
])  # fmt: skip
def test_damaged_tensors(tmp_path, name, damage):
    net, optimizer = trained()
    folder = kept(tmp_path, net, optimizer)
    plain = read_run_state(folder)
    damage(folder / name)
    with pytest.raises(CheckpointError, match=rf"state' cannot be read \({name}: .*remove this folder"):
        load_run_state(folder, plain, net, optimizer, None, TrainingProcesses())


def test_another_network_is_refused(tmp_path):
    net, optimizer = trained()
    folder = kept(tmp_path, net, optimizer)
    other = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_run_state(
            folder, read_run_state(folder), other, torch.optim.AdamW(other.parameters()), None, TrainingProcesses()
        )
