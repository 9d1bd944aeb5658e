"""``pararealize convert``: the plan, the files, and a network that loads from them alone."""

import errno
import importlib.util
import json
import os
import sys

import pytest
import torch

from pararealize import Plan, load, models, pararealize
from pararealize.errors import CheckpointError
from pararealize.lookup import find
from pararealize.saving import network_folder, read_folder
from tests.command import run


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert") / "out"
    return folder, run("convert", "resnet20", "--n", "3", "--seed", "5", "--out", folder)


def test_convert_prints_the_plan_and_writes_the_files(converted):
    folder, result = converted
    assert result.exit_code == 0
    for part in ["resnet20: 3 segments", "g3", "stage3.2", "64×8×8", "predicted speed-up", "weights.safetensors"]:
        assert part in result.stdout
    names = {"plan.json", "weights.safetensors", "model.py", "network.svg", "network.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    Plan.from_json((folder / "plan.json").read_text())
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def imported(path, monkeypatch):
    spec = importlib.util.spec_from_file_location("written_model", path / "model.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "written_model", module)
    spec.loader.exec_module(module)
    return module


def test_what_was_written_can_be_loaded(converted, monkeypatch):
    """The folder alone gives the very network that the library gives from the same seed."""
    module = imported(converted[0], monkeypatch)
    torch.manual_seed(5)
    expected = pararealize(models.resnet20(), 3, seed=5).eval()
    torch.manual_seed(6)
    loaded = module.load().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), expected(x))
        assert torch.equal(module.forward(loaded, x), expected(x))


def test_existing_folder_is_kept_unless_forced(converted):
    folder, _ = converted
    before = (folder / "plan.json").read_text()
    result = run("convert", "resnet20", "--n", "2", "--out", folder)
    assert result.exit_code == 2
    assert "there already" in result.stderr
    assert (folder / "plan.json").read_text() == before


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)])
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.layers(self.embedding(x)))

def coarse(segment, x, y):
    return nn.Linear(x[-1], y[-1])
"""


def test_tied_weights_and_a_coarse_block_of_ones_own(tmp_path, monkeypatch):
    file = tmp_path / "tied.py"
    file.write_text(TIED)
    out = tmp_path / "out"
    words = ["--n", "2", "--coarse", f"{file}:coarse", "--input-shape", "5", "--input-dtype", "int64", "--out", out]
    result = run("convert", f"{file}:Tied", *words)
    assert result.exit_code == 0, result.output
    monkeypatch.chdir("/")
    module = imported(out, monkeypatch)
    with pytest.raises(CheckpointError, match=r"was built by 'tied.py:Tied', which no file may run by itself; pass"):
        module.load()
    loaded = module.load(f"{file}:Tied", coarse=find(f"{file}:coarse"))
    text = "".join(path.read_text() for path in out.iterdir() if path.suffix in (".json", ".py", ".svg"))
    assert str(tmp_path) not in text
    assert loaded.out.weight is loaded.embedding.weight
    assert loaded(torch.zeros(3, 5, dtype=torch.long)).shape == (3, 5, 11)


def test_convert_json_and_no_weights(tmp_path):
    result = run(
        "convert", "resnet20", "--n", "2", "--no-weights", "--json", "--picture", "png", "--out", tmp_path / "o"
    )
    value = json.loads(result.stdout)
    assert value["files"] == ["plan.json", "model.py", "network.png", "manifest.json", "network.json"]
    assert value["plan"]["n"] == 2
    assert value["predicted"]["virtual_speedup"] > 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted(value["files"])


def test_a_plan_that_was_made_before(converted, tmp_path):
    """Of a file or a folder, it says all that options of cuts and kinds say; those beside it have to say the same."""
    folder, _ = converted
    plan = Plan.from_json((folder / "plan.json").read_text())
    words = ("convert", "resnet20", "--no-weights", "--json")
    for path in (folder, folder / "plan.json"):
        assert json.loads(run(*words, "--plan", path).stdout)["plan"] == json.loads(plan.to_json())
    assert run(*words, "--plan", folder, "--n", plan.n).exit_code == 0
    for more, message in [
        (("--n", plan.n + 1), f"--n is {plan.n + 1} and the plan is for {plan.n}"),
        (("--windows", 2), "--windows is 2, and the plan has other windows"),
        (("--coarse", "dense"), "--coarse is 'dense'"),
    ]:
        refused = run(*words, "--plan", folder, *more)
        assert refused.exit_code == 2
        assert message in json.loads(refused.stdout)["error"]["message"]
    absent = run("convert", "resnet20", "--plan", tmp_path / "none.json")
    assert absent.exit_code == 2
    assert "none.json': No such file or directory; name the plan.json" in absent.stderr


def test_a_folder_in_the_place_of_a_model(converted, tmp_path):
    """With --n its original is converted anew, with the weights that it has; without, it is the network as it is."""
    folder, _ = converted
    assert run("convert", folder, "--out", tmp_path / "same").exit_code == 0
    assert run("convert", folder, "--n", 2, "--out", tmp_path / "other").exit_code == 0
    first, same, other = (load(path) for path in (folder, tmp_path / "same", tmp_path / "other"))
    assert (first.plan, other.plan.n) == (same.plan, 2)
    for name, tensor in first.original_state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for words, message in [
        (("convert", "resnet20"), "'resnet20' is no network's folder"),
        (("convert", folder, "--windows", 3), "--windows 3 asks for a new conversion"),
        (("convert", folder, "--num-classes", 5), "--num-classes 5 asks for a new conversion"),
        (
            ("convert", folder, "--cost", "seconds", "--seed", 9, "--batch-size", 64, "--leaf", "a", "--leaf", "b"),
            "--cost seconds, --batch-size 64, --leaf a, --leaf b, --seed 9 asks for a new conversion",
        ),
        (("convert", folder, "--n", 2, "--num-classes", 5), "says how its model is built; leave it out"),
        (("convert", "resnet20", "--n", 2, "--built-by", "a.py:b"), "'resnet20' is no network's folder"),
    ]:
        refused = run(*words)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_the_librarys_errors_are_one_message():
    for words, name in [
        (["--n", "99"], "PlanError"),
        (["--n", "2", "--coarse", "papper"], "CoarseError"),
        (["--n", "2", "--cuts", "stage9.0"], "CutError"),
        (["--n", "2", "--devices", "abacus:0"], "DeviceError"),
    ]:
        result = run("convert", "resnet20", *words)
        assert result.exit_code == 2
        assert name in result.stderr
        assert result.stdout == ""


def test_a_folder_knows_its_leaf_modules(tmp_path):
    """A new conversion of its original does not look into them either."""
    file = tmp_path / "tied.py"
    file.write_text(TIED)
    words = ("--n", 2, "--coarse", "linear", "--input-shape", 5, "--input-dtype", "int64", "--leaf", "layers.1")
    assert run("convert", f"{file}:Tied", *words, "--out", tmp_path / "net").exit_code == 0
    again = ("convert", tmp_path / "net", "--built-by", f"{file}:Tied", "--n", 3, "--coarse", "linear")
    done = run(*again, "--out", tmp_path / "again")
    assert done.exit_code == 0, done.output
    assert read_folder(tmp_path / "again").record.conversion.leaf_modules == ["layers.1"]


def test_a_full_disk_is_one_message(tmp_path, monkeypatch):
    def fail(*_: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(network_folder, "write_weights", fail)
    result = run("convert", "resnet20", "--n", 2, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "OutputError"
    assert "out': No space left on device; free the disk, or name another folder with --out" in error["message"]
    assert list(tmp_path.iterdir()) == []
