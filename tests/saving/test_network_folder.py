"""A network's folder: whole or not there, the same bytes twice, and refused where anything in it is not as it was."""

import re
import shutil

import pytest
import torch
from torch import nn

from pararealize import load, load_original, pararealize
from pararealize.errors import CheckpointError, ModelError, OutputError
from pararealize.saving import read_folder, save_model
from pararealize.saving.network_folder import find_folder
from tests.models import Perceptron

FILES = ["manifest.json", "network.json", "plan.json", "weights.safetensors"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    net = pararealize(Perceptron(3), n=2, coarse="linear", example_inputs=torch.randn(2, 8))
    return net, net.save(tmp_path_factory.mktemp("saved") / "net")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_network_gives_the_same_bytes(saved, tmp_path):
    net, folder = saved
    assert sorted(content(folder)) == FILES
    assert (
        content(net.save(tmp_path / "again"))
        == content(folder)
        == content(load(folder, Perceptron(3)).save(tmp_path / "third"))
    )
    assert not any(re.search(rb"[\"' ]/\w+/", text) for name, text in content(folder).items() if name.endswith("json"))


def test_what_is_there_stays(saved, tmp_path):
    net, folder = saved
    before = content(folder)
    with pytest.raises(OutputError, match="is there already; name another folder, or pass replace=True"):
        net.save(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds what no network's folder has \(notes.txt\)"):
        net.save(tmp_path / "mine", replace=True)
    handle = net.get_submodule("6").register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match="no file holds hooks, and 6 has a forward hook"):
        net.save(folder, replace=True)
    handle.remove()
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["net"]  # no temporary one is left
    net.save(folder, replace=True)
    assert content(folder) == before


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_told(name, saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "net")
    text = bytearray((folder / name).read_bytes())
    text[len(text) // 2] ^= 1
    (folder / name).write_bytes(text)
    with pytest.raises(CheckpointError, match="put the folder 'net' back from a copy, or save it anew"):
        read_folder(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"is missing|holds no saved network"):
        load(folder)


def test_what_is_foreign_is_told(saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "net")
    (folder / "__pycache__").mkdir()
    read_folder(folder)
    (folder / "buffers.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds what was not written with the network \(buffers.safetensors\)"):
        load(folder)
    for place in (tmp_path, tmp_path / "nowhere", folder / "plan.json"):
        with pytest.raises(CheckpointError, match="holds no saved network"):
            load(place)


def test_a_name_that_is_not_this_models(saved, tmp_path):
    with pytest.raises(ModelError, match=r"resnet20\(\) is not this model: \d+ tensors differ"):
        saved[0].save(tmp_path / "wrong", model="resnet20")
    with pytest.raises(ModelError, match="and no model=; name what was called with them"):
        saved[0].save(tmp_path / "wrong", arguments={"depth": 3})
    assert find_folder(tmp_path) is None


def test_an_original_alone(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    folder = save_model(net, tmp_path / "original")
    with pytest.raises(CheckpointError, match="holds an original, Sequential, that is not converted"):
        load(folder)
    again = load_original(folder, nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double())
    assert torch.equal(again[0].weight, net[0].weight)
