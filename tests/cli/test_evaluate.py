"""``pararealize evaluate``: what ``compare`` measures, of a folder, with data of one's own and by name."""

import json

import pytest
import torch

from pararealize import load_original, pararealize
from tests.command import run
from tests.models import Perceptron

CODE = """
import torch
from tests.models import Perceptron
def deep(): return Perceptron(3)
def batches():
    x = torch.linspace(-1, 1, 48).view(6, 8)
    return [(x, torch.arange(6) % 2)], [(x[:4], torch.arange(4) % 2)]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    pararealize(Perceptron(3), 2, coarse="exact", example_inputs=torch.randn(2, 8)).save("net", model="own.py:deep")
    return "net"


def test_side_by_side(folder):
    words = ("evaluate", folder, "--built-by", "own.py:deep", "--data", "own.py:batches", "--rounds", 1)
    done = run(*words, "--json", "--batch-sizes", "1,2")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)["comparison"]
    x = torch.linspace(-1, 1, 48).view(6, 8)[:4]
    right = (load_original(folder, "own.py:deep")(x).argmax(1) == torch.arange(4) % 2).double().mean()
    assert (value["samples"], value["original"]["accuracy"]) == (4, float(right))
    assert [row["batch"] for row in value["latencies"]] == [1, 2]
    text = run(*words, "--batch-sizes", 0, "--no-logits")
    assert "4 samples" in text.stdout
    assert "accuracy" not in text.stdout
    assert "batch 1" not in text.stdout


def test_refusals(folder):
    for words, message in [
        (("evaluate", folder, "--data", "own.py:batches"), "was built by 'own.py:deep'"),
        (("evaluate", "resnet20"), "'resnet20' holds no saved network"),
        (("evaluate", folder, "--built-by", "own.py:batches"), "and model= names 'own.py:batches'"),
    ]:
        done = run(*words)
        assert done.exit_code == 2
        assert message in done.stderr
