"""A run between two steps: written and read, to the bit, with every random state; damaged ones."""

import dataclasses
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from torch import nn

from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import CheckpointError
from pararealize.manifest import MANIFEST, write_manifest
from pararealize.train.run.checkpoint import (
    HOLDS,
    check_run_state,
    gather_run_state,
    load_run_state,
    write_run_state,
)
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


RUN = "f" * 64
FACTS = {
    "step": 3,
    "epoch": 0,
    "batch": 3,
    "recent": [1.0, 1.0, 1.0],
    "whole": [1.0, 1.0, 1.0],
    "score": None,
    "lines": {},
}


def kept(tmp_path, net, optimizer, scaler=None, processes=None):
    folder = tmp_path / "step-00000003"
    folder.mkdir()
    write_run_state(folder, gather_run_state(net, optimizer, scaler, processes or TrainingProcesses(), FACTS), run=RUN)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return kept(tmp_path_factory.mktemp("kept"), *trained())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_run_goes_on_to_the_bit(tmp_path, kind):
    net, optimizer = trained(optimizer=kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale(torch.ones(()))
    folder = kept(tmp_path, net, optimizer, scaler)
    advance(net, optimizer)
    drawn = torch.rand(3), random.random(), np.random.random()
    other, its = trained(seed=1, optimizer=kind)
    its_scaler = torch.amp.GradScaler("cpu")
    plain = check_run_state(folder, run=RUN)
    assert plain.step == 3
    assert load_run_state(folder, plain, other, its, its_scaler, TrainingProcesses())
    advance(other, its)
    assert same(net, other)
    assert torch.equal(torch.rand(3), drawn[0])
    assert (random.random(), np.random.random()) == drawn[1:]
    assert its_scaler.get_scale() == 512.0


def test_nothing_is_pickled(checkpoint):
    names = {"weights.safetensors", "state.safetensors", "state.json", "manifest.json"}
    assert {path.name for path in checkpoint.iterdir()} == names
    for name in ("state.json", "manifest.json"):
        json.loads((checkpoint / name).read_text())


def test_other_ranks_have_no_random_state(tmp_path):
    net, optimizer = trained()
    folder = kept(tmp_path, net, optimizer)
    plain = dataclasses.replace(check_run_state(folder, run=RUN), world=2)
    before = torch.get_rng_state()
    assert not load_run_state(folder, plain, net, optimizer, None, TrainingProcesses())
    assert torch.equal(torch.get_rng_state(), before)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    file.write_bytes(content)


def fifo(file):
    file.unlink()
    os.mkfifo(file)


def folder(file):
    file.unlink()
    file.mkdir()


def link(file):
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def swap(file):
    other = file.with_name("state.json" if file.name == "state.safetensors" else "state.safetensors")
    content = other.read_bytes()
    other.write_bytes(file.read_bytes())
    file.write_bytes(content)


NAMES = ("weights.safetensors", "state.safetensors", "state.json", MANIFEST)
DAMAGES = {
    flip: "is not what was written: its SHA-256 was",
    lambda file: file.write_bytes(file.read_bytes()[:99]): "is not what was written: it had",
    Path.unlink: "is missing",
    fifo: "it is a FIFO and no file",
    folder: "it is a folder and no file",
    link: "it is a link and no file",
    swap: "which is state",
}


@pytest.mark.parametrize("damage, told", DAMAGES.items(), ids=range(len(DAMAGES)))
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_named(checkpoint, tmp_path, name, damage, told):
    copy = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    damage(copy / name)
    told = "manifest.json' (cannot be read|is of schema)|damaged" if name == MANIFEST else f"damaged: .*{name}.*{told}"
    with pytest.raises(CheckpointError, match=told):
        check_run_state(copy, run=RUN)


@settings(max_examples=40, deadline=None)
@given(
    name=strategies.sampled_from(NAMES), place=strategies.floats(0, 1, exclude_max=True), bit=strategies.integers(0, 7)
)
def test_no_bit_of_a_checkpoint_can_be_flipped_unseen(checkpoint, name, place, bit):
    """Of the manifest some can, such as a space between two entries."""
    content = bytearray((checkpoint / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(checkpoint, Path(folder) / checkpoint.name)
        (copy / name).write_bytes(content)
        try:
            plain = check_run_state(copy, run=RUN)
        except CheckpointError:
            return
    assert name == MANIFEST
    assert plain == check_run_state(checkpoint, run=RUN)


def test_another_run_and_another_step_are_named(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a checkpoint of another run: 'ffff.*' there, 'eeee.*' here"):
        check_run_state(checkpoint, run="e" * 64)
    with pytest.raises(CheckpointError, match="its name says step 4, its manifest 3, its state 3"):
        check_run_state(shutil.copytree(checkpoint, tmp_path / "step-00000004"), run=RUN)


def change(state, *path, value):
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


@pytest.mark.parametrize("path, value, told", [
    (("random", 0, "python", 1, 624), 10**6, "cannot be taken: ValueError"),
    (("optimizer", "groups", 0, "lr"), "fast", "lr of group 0: 'fast' there"),
    (("optimizer", "groups", 0, "betas"), [0.9], r"betas of group 0: \[0.9\] there"),
    (("optimizer", "groups", 0, "params"), [1], "groups.0.params.0: "),
    (("optimizer", "groups"), [], "the state has 0 groups"),
    (("scaler",), {"scale": 1}, "KeyError"),
])  # fmt: skip
def test_sealed_nonsense_is_refused(checkpoint, tmp_path, path, value, told):
    """Whoever changes the state and its digests too gets an error of ours, if not the run that was."""
    copy = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    state = json.loads((copy / "state.json").read_text())
    change(state, *path, value=value)
    (copy / "state.json").write_text(json.dumps(state))
    (copy / MANIFEST).unlink()
    write_manifest(copy, HOLDS, {"run": RUN, "step": 3})
    net, optimizer = trained()
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(CheckpointError, match=told):
        load_run_state(copy, check_run_state(copy, run=RUN), net, optimizer, scaler, TrainingProcesses())


def test_another_network_is_refused(checkpoint):
    other = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_run_state(checkpoint, check_run_state(checkpoint, run=RUN), other, optimizer, None, TrainingProcesses())
