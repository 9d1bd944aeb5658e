"""A network's folder: whole or not there, the same bytes twice, and refused where anything in it is not as it was."""

import re
import shutil

import pytest
import torch
from torch import nn

from pararealize import load, load_original, pararealize
from pararealize.errors import CalibrationError, CheckpointError, ModelError, OutputError
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
    (tmp_path / "restacking.json").touch()
    with pytest.raises(CheckpointError, match=r"restack wrote it, .* models.build\('.*/model.py:load'\)"):
        load(tmp_path)


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


@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"folder": None}, OutputError),
        ({"folder": 3}, OutputError),
        ({"folder": b"x"}, OutputError),
        ({"replace": "no"}, OutputError),
        ({"model": nn.Linear(2, 2)}, ModelError),
        ({"arguments": "x"}, ModelError),
        ({"original": "x"}, ModelError),
        ({"calibration": "foo"}, CalibrationError),
    ],
)
def test_wrong_arguments_are_typed_errors(wrong, error, saved, tmp_path):
    (name,) = wrong
    with pytest.raises(error, match=rf"^{name} is "):
        saved[0].save(**{"folder": tmp_path / "net"} | wrong)
    if name in ("folder", "replace"):
        with pytest.raises(error, match=rf"^{name} is "):
            save_model(nn.Linear(2, 2), **{"folder": tmp_path / "net"} | wrong)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_of_the_other_functions():
    with pytest.raises(ModelError, match="model is None; pass a Module"):
        save_model(None, "net")
    with pytest.raises(CheckpointError, match="path is None"):
        read_folder(None)


def test_an_original_that_is_another_model_is_refused(saved, tmp_path):
    for other in (nn.Linear(2, 2), Perceptron(4)):
        with pytest.raises(ModelError, match=r"original= is not the model .* \d+ tensors differ \("):
            saved[0].save(tmp_path / "net", original=other)
    with pytest.raises(CheckpointError, match="on the meta device"):
        saved[0].save(tmp_path / "net", original=Perceptron(3).to("meta"))
    file = tmp_path / "nets.py"
    file.write_text("from torch import nn\ndef tied(): return nn.Linear(2, 2)\n")
    with pytest.raises(ModelError, match=r"nets.py:tied\(\) is not this model: \d+ tensors differ"):
        saved[0].save(tmp_path / "net", model=f"{file}:tied")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["nets.py"]


def test_links_are_followed_and_what_systems_leave_is_passed_over(saved, tmp_path):
    """A cache of files (Hugging Face's) has them as links to their contents; the digests decide."""
    blobs = shutil.copytree(saved[1], tmp_path / "blobs")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name in FILES:
        (folder / name).symlink_to(f"../blobs/{name}")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._plan.json", ".gitattributes"):
        (folder / name).write_bytes(b"\0")
    x = torch.randn(2, 8)
    assert torch.equal(load(folder, Perceptron(3))(x), saved[0](x))
    with pytest.raises(OutputError, match=r"holds what no network's folder has"):
        saved[0].save(folder, replace=True)
    (blobs / "plan.json").write_text((blobs / "plan.json").read_text() + "\n")
    with pytest.raises(CheckpointError, match=r"plan.json is not what was written"):
        load(folder, Perceptron(3))
    (blobs / "plan.json").unlink()
    with pytest.raises(CheckpointError, match=r"plan.json is missing"):
        load(folder, Perceptron(3))


def test_what_systems_leave_is_no_reason_against_replacing(saved, tmp_path):
    folder = saved[0].save(tmp_path / "net")
    (folder / ".DS_Store").write_bytes(b"\0")
    saved[0].save(folder, replace=True)
    (folder / "README.md").write_text("mine")
    read_folder(folder)
    with pytest.raises(OutputError, match=r"holds what no network's folder has \(README.md\)"):
        saved[0].save(folder, replace=True)
