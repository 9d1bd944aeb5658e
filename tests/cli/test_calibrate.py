"""``pararealize calibrate``: a folder that loads, a report, and refusals in one message."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

from pararealize import models
from pararealize.calibration.report import Calibration
from pararealize.calibration.tuning_report import FineTuning
from pararealize.data.catalogue import load
from tests.command import run


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
