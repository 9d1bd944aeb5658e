"""``pararealize calibrate``: a folder that loads, a report, and refusals in one message."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

from pararealize import load as load_network
from pararealize import load_original, models
from pararealize.calibration.report import Calibration
from pararealize.calibration.tuning_report import FineTuning
from pararealize.data.catalogue import load
from tests.command import run

NETWORK = """
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(64, 8), nn.Linear(8, 10)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x.flatten(1))))


def deep():
    return Deep()
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    save_model(models.resnet20(), str(tmp_path / "trained.safetensors"))
    return tmp_path / "trained.safetensors"


def test_a_folder_that_loads(weights: Path, tmp_path: Path) -> None:
    words = ("calibrate", "resnet20", "--weights", weights, "--n", 3, "--coarse", "linear", "--image-size", 8)
    result = run(*words, "--sequential", 1, "--fine-tune-steps", 2, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    names = {"plan.json", "weights.safetensors", "model.py", "network.svg", "calibration.json", "calibration.svg"}
    names |= {"manifest.json", "network.json", "original.safetensors"}
    names.add("fine-tuning.json")
    assert set(printed["files"]) == names == {entry.name for entry in (tmp_path / "out").iterdir()}
    written = Calibration.from_json((tmp_path / "out" / "calibration.json").read_text())
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["segments"][1]["m"] == 2
    assert printed["calibration"] == json.loads(written.to_json())
    spec = importlib.util.spec_from_file_location("written", tmp_path / "out" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.load().eval()
    data = load("digits", image_size=8)
    with torch.no_grad():
        right = sum((net(x).argmax(1) == y).sum().item() for x, y in data.test_batches())
    assert written.stage("fine-tuned").accuracy == pytest.approx(right / data.test_count)
    assert "interfaces, " in str(written)
    tuned = FineTuning.from_json((tmp_path / "out" / "fine-tuning.json").read_text())
    assert (tuned.loss, tuned.train, tuned.calibration) == ("kl", "all", written)
    assert printed["fine_tuning"]["verdict"] == {"usable": tuned.verdict.usable, "sentence": str(tuned.verdict)}
    windows = ("--n", 2, "--windows", 3, "--coarse", "low-rank:4", "--fine-tune-steps", 1, "--train", "added")
    again = run(*words, *windows, "--out", tmp_path / "out", "--force")
    assert again.exit_code == 0, again.output
    assert all(
        text in again.stdout for text in ("3 windows", "output corrections, ", "on the test samples", "trained: added")
    )
    assert Calibration.from_json((tmp_path / "out" / "calibration.json").read_text()).corrections


def test_a_folder_has_the_original_of_a_network_whose_weights_were_changed(tmp_path: Path) -> None:
    """Without it the original of a network with maps in its layers had them, too, and was compared with itself."""
    (tmp_path / "deep.py").write_text(NETWORK)
    deep = str(tmp_path / "deep.py:deep")
    torch.manual_seed(5)
    model = models.build(deep).eval()
    save_model(model, str(tmp_path / "trained.safetensors"))
    data, kind = ("--image-size", 8, "--channels", 1), ("--n", 2, "--windows", 2, "--coarse", "folded")
    folders = [tmp_path / name for name in ("first", "again", "tuned", "anew")]
    weights = ("--weights", tmp_path / "trained.safetensors")
    first = run("calibrate", deep, *weights, *kind, *data, "--out", folders[0])
    assert first.exit_code == 0, first.output
    for source, folder, *more in (
        (folders[0], folders[1]),
        (folders[1], folders[2], "--fine-tune-steps", 5, "--fine-tune-lr", 1e-5),
        (folders[2], folders[3]),
    ):
        result = run("calibrate", source, "--built-by", deep, *more, *data, "--out", folder)
        assert result.exit_code == 0, result.output
    networks = [load_network(folder, models.build(deep)).state_dict() for folder in folders]
    for index in (1, 3):
        assert all(torch.equal(value, networks[index][key]) for key, value in networks[0].items())
    for folder in folders:
        original = load_original(folder, models.build(deep)).state_dict()
        assert all(torch.equal(value, original[key]) for key, value in model.state_dict().items())
    torch.manual_seed(6)
    other = models.build(deep).eval()
    save_model(other, str(tmp_path / "other.safetensors"))
    words = ("--built-by", deep, "--weights", tmp_path / "other.safetensors", *data)
    result = run("calibrate", folders[0], *words, "--out", tmp_path / "other")
    assert result.exit_code == 0, result.output
    original = load_original(tmp_path / "other", models.build(deep)).state_dict()
    assert all(torch.equal(value, original[key]) for key, value in other.state_dict().items())
    loaded = load_network(tmp_path / "other", models.build(deep)).state_dict()
    assert torch.equal(loaded["stem.weight"], other.state_dict()["stem.weight"])


def test_refusals(weights: Path, tmp_path: Path) -> None:
    common = ("--n", 3, "--coarse", "linear", "--image-size", 8)
    missing = run("calibrate", "resnet20", "--weights", tmp_path / "none.safetensors", *common)
    assert missing.exit_code == 2
    assert "none.safetensors' cannot be read: No such file or directory; name the weights" in missing.stderr
    other = run("calibrate", "resnet32", "--weights", weights, *common)
    assert other.exit_code == 2
    assert "trained.safetensors' does not fit: " in other.stderr
    (tmp_path / "text.safetensors").write_text("no tensors")
    loss = run("calibrate", "resnet20", "--weights", weights, *common, "--fine-tune-steps", 1, "--loss", "hinge")
    assert loss.exit_code == 2
    assert "--loss is 'hinge'; write auto, kl, " in loss.stderr
    text = run("calibrate", "resnet20", "--weights", tmp_path / "text.safetensors", *common)
    assert text.exit_code == 2
    assert "cannot be read as a safetensors file" in text.stderr
    torch.manual_seed(5)
    save_model(models.build("resnet20", num_classes=4), str(tmp_path / "four.safetensors"))
    few = run(
        "calibrate", "resnet20", "--weights", tmp_path / "four.safetensors", "--num-classes", 4, *common, "--json"
    )
    assert few.exit_code == 2
    assert "the network tells 4 classes" in json.loads(few.stdout)["error"]["message"]
