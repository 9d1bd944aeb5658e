"""``pararealize train``: what it prints, writes and refuses; under torchrun, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pararealize
from pararealize import Plan, Recipe
from pararealize.train.run import tensorboard
from pararealize_cli.train_display import Display
from tests.command import run
from tests.cuda_double import cuda_on_the_cpu

NETWORK = """
import torch
from torch import nn

def net(width=8):
    torch.manual_seed(0)
    inner = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(4)]
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), *inner, nn.Linear(width, 10))
"""
RESIDUAL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, u):
        return u + 0.5 * self.f(u)

def deep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), *[Block() for _ in range(6)], nn.Linear(8, 10))
"""
WORDS = [
    "train",
    "nets.py:net",
    "--n",
    2,
    "--image-size",
    8,
    "--coarse",
    "linear",
    "--source",
    "stem",
    "--no-tensorboard",
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETWORK + RESIDUAL)


def test_a_run(tmp_path):
    result = run(*WORDS, "--epochs", 2, "--initialise", "none")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("nets.py:net (parareal, n = 2) on digits: 1437 training")
    assert lines[1].startswith("2 epochs of SGD, momentum 0.9")
    assert lines[2].startswith("epoch 1/2  loss ")
    assert "test accuracy" in lines[3]
    assert lines[4].startswith("error ")
    assert lines[5] == (
        "written to nets.py-net-n2-digits: checkpoints, curves.svg, latest.json, metrics.jsonl, network, plan.json, "
        "run.json, times.jsonl, weights.safetensors"
    )
    folder = tmp_path / "nets.py-net-n2-digits"
    assert Plan.from_json((folder / "plan.json").read_text()).n == 2
    asked = json.loads((folder / "run.json").read_text())
    assert asked["recipe"] == Recipe(epochs=2).to_dict()
    assert asked["about"] == {"model": "nets.py:net", "method": "parareal", "num_classes": None, "coarse": "linear"}

    again = run(*WORDS, "--epochs", 2, "--initialise", "none")
    assert again.exit_code == 2
    assert "OutputError: 'nets.py-net-n2-digits' is there already" in again.stderr
    other = run(*WORDS, "--epochs", 3, "--initialise", "none", "--resume", "--json")
    assert other.exit_code == 2
    told = json.loads(other.stdout)["error"]
    assert told["type"] == "CheckpointError"
    assert "recipe.epochs: 2 there, 3 here" in told["message"]
    assert run(*WORDS, "--epochs", 2, "--initialise", "none", "--resume").exit_code == 0
    last = folder / "checkpoints" / "step-00000024"
    (last / "weights.safetensors").write_bytes(b"")
    damaged = run(*WORDS, "--epochs", 2, "--initialise", "none", "--resume")
    assert damaged.exit_code == 2
    assert damaged.stderr.endswith("step-00000012, is intact: go on from it with --resume-from previous\n")
    assert run(*WORDS, "--epochs", 2, "--initialise", "none", "--resume-from", "previous").exit_code == 0
    assert len(list(last.iterdir())) == 4
    assert run(*WORDS, "--epochs", 1, "--force").exit_code == 0


def test_every_value_of_a_recipe_is_a_flag(tmp_path):
    words = [
        "--epochs", 1, "--lr", 0.02, "--momentum", 0.8, "--weight-decay", 0.001, "--nesterov", "--schedule", "steps",
        "--milestones", "0.25,0.5", "--gamma", 0.5, "--warmup", 3, "--label-smoothing", 0.1, "--clip", 2,
        "--amp", "auto",
        "--batch-size", 200, "--seed", 3, "--log-every", 4, "--out", "there", "--json",
    ]  # fmt: skip
    result = run(*WORDS, *words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    expected = Recipe(
        epochs=1, lr=0.02, momentum=0.8, weight_decay=0.001, nesterov=True, milestones=(0.25, 0.5), gamma=0.5, warmup=3,
        label_smoothing=0.1, clip=2.0, amp="bfloat16", initialise="he",
    )  # fmt: skip
    assert told["recipe"] == expected.to_dict()
    assert told["out"] == "there"
    assert told["score"]["count"] == 360
    assert len(told["epochs"]) == 1
    assert "batches of 200" in told["data"]
    assert "epoch 1/1" in result.stderr
    asked = json.loads((tmp_path / "there" / "run.json").read_text())
    assert (asked["seed"], asked["log_every"], asked["data"]["batch_size"]) == (3, 4, 200)
    assert run(*WORDS, "--optimizer", "adamw", "--schedule", "cosine", "--epochs", 1, "--lr", 0.01).exit_code == 0


def test_serial():
    words = [
        "train",
        "nets.py:net",
        "--method",
        "serial",
        "--image-size",
        8,
        "--epochs",
        1,
        "--no-tensorboard",
        "--json",
    ]
    result = run(*words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["out"] == "nets.py-net-serial-digits"
    assert "plan.json" not in told["files"]


@pytest.mark.parametrize("words, told", [
    (["--resume", "--force"], "--resume goes on with the run that is there and --force replaces it"),
    (["--milestones", "a,b"], "--milestones 'a,b' are no numbers"),
    (["--lr", 0], "lr is 0.0; pass a positive number"),
    (["--data", "moons"], "no data set is called 'moons'"),
    (["--method", "euler"], "no method is called 'euler'"),
    (["--devices", "gpu"], "gpu"),
    (["--graphs", "--data", "moons"], "CUDA graphs need a network on GPUs, and this one is on cpu"),  # before the data
    (["--monitor"], "--monitor watches layers that are solved for by multigrid, and the method is 'parareal'"),
])  # fmt: skip
def test_refusals(tmp_path, words, told):
    result = run(*WORDS, *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


def test_n_is_needed():
    result = run("train", "nets.py:net", "--image-size", 8)
    assert result.exit_code == 2
    assert "needs n, the number of segments (--n 3)" in result.stderr


def test_without_tensorboard(monkeypatch):
    monkeypatch.setattr(tensorboard, "has_tensorboard", lambda: False)
    words = WORDS[:-1]
    result = run(*words, "--epochs", 1, "--out", "a")
    assert result.exit_code == 0
    assert "no files for TensorBoard, which is not installed" in result.stdout
    assert "TensorBoard" not in run(*words, "--epochs", 1, "--out", "b", "--no-tensorboard").stdout
    refused = run(*words, "--epochs", 1, "--out", "c", "--tensorboard")
    assert refused.exit_code == 2
    assert "pip install 'pararealize[train]'" in refused.stderr


def test_a_run_that_the_user_stops(tmp_path, monkeypatch):
    seen = []

    def report(self, now):
        seen.append(now.step)
        if len(seen) == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Display, "report", report)
        result = run(*WORDS, "--epochs", 2, "--out", "run")
    assert result.exit_code == 130
    assert "the same command with --resume goes on from the last checkpoint in run" in result.stdout
    assert run(*WORDS, "--epochs", 2, "--out", "run", "--resume").exit_code == 0
    assert run(*WORDS, "--epochs", 2, "--out", "whole").exit_code == 0
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


MONITORED = [
    "train", "nets.py:deep", "--method", "multigrid", "--coarsening", 2, "--iterations", "1/1", "--image-size", 8,
    "--batch-size", 360, "--epochs", 3, "--no-tensorboard", "--monitor", "--monitor-every", 2,
]  # fmt: skip


def test_a_monitored_run(tmp_path, monkeypatch):
    result = run(*MONITORED, "--out", "whole", "--json")
    assert result.exit_code == 0, result.output
    events = json.loads(result.stdout)["events"]
    assert events[-1] == {"step": 10, "why": "10 steps are done", "forward": 0, "backward": 0}  # of 12
    assert len(events) > 1
    assert f"monitor: step {events[0]['step']}: {events[0]['why']}: 2/1 iterations from here on" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if row["kind"] == "event"] == [{"kind": "event", **event} for event in events]
    asked = json.loads((tmp_path / "whole" / "run.json").read_text())["monitor"]
    assert asked == {"every": 2, "cosine": 0.98, "residual": 0.02, "most": 5, "exact_after": 10}

    def report(self, now):
        if now.step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Display, "report", report)
        assert run(*MONITORED, "--out", "run").exit_code == 130
    assert json.loads(run(*MONITORED, "--out", "run", "--resume", "--json").stdout)["events"] == events
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_torchrun(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pararealize_cli"]
    words = [("-n" if word == "--n" else word) for word in WORDS]  # torchrun takes --n for one of its own
    root = str(Path(pararealize.__file__).resolve().parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, *launch, *words, "--epochs", 1, "--out", "ranks", "--json", "--report", "ranks.html"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    alone = json.loads(run(*WORDS, "--epochs", 1, "--out", "alone", "--json").stdout)
    assert told["score"]["error"] == alone["score"]["error"]
    assert told["score"]["loss"] == pytest.approx(alone["score"]["loss"], rel=1e-4)
    asked = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("ranks", "alone")]
    # of the weights that rank 0 begins with, which are some of them
    assert all(each.pop("run") and each.pop("weights") for each in asked)
    assert asked[0] == asked[1]
    page = (tmp_path / "ranks.html").read_text(encoding="utf-8")
    assert all(f"One step on 2 devices, {how}" in page for how in ("predicted", "measured"))


def test_steps_as_cuda_graphs(tmp_path):
    words = [*WORDS, "--epochs", 1, "--batch-size", 400, "--amp", "bfloat16", "--clip", 1]  # 1437 samples: 4 steps
    with cuda_on_the_cpu():
        result = run(*words, "--devices", "cpu", "--graphs", "--out", "graphs", "--json")
        assert run(*words, "--devices", "cpu,cpu", "--graphs").exit_code == 2
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["graphs"] == {"replayed": 3, "eager": 1}
    assert json.loads((tmp_path / "graphs" / "run.json").read_text())["about"]["graphs"] is True
    assert json.loads(run(*words, "--out", "eager", "--json").stdout)["graphs"] is None
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (tmp_path / "graphs" / name).read_bytes() == (tmp_path / "eager" / name).read_bytes()
    refused = run(*MONITORED, "--graphs")
    assert refused.exit_code == 2
    assert "--graphs: nothing that --method multigrid reads" in " ".join(refused.stderr.split())


def test_options_are_told_from_defaults(tmp_path):
    refused = run("train", "resnet20", "--method", "serial", "--coarse", "paper", "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert "--coarse: nothing that --method serial reads" in " ".join(refused.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_run_says_how_the_network_of_its_folder_is_corrected(tmp_path):
    """Its plan does, or that of ``--plan``; options that would change nothing of the network are refused."""
    short = ("--image-size", 8, "--epochs", 1, "--batch-size", 512, "--no-tensorboard")
    assert run(*WORDS, *short, "--out", "first").exit_code == 0
    folder = ("train", "first", "--built-by", "nets.py:net", *short)
    assert run(*folder, "--out", "second").exit_code == 0
    assert run("train", "nets.py:net", "--plan", "first/plan.json", *short, "--out", "third").exit_code == 0
    for name in ("second", "third"):
        assert json.loads((tmp_path / name / "run.json").read_text())["about"]["coarse"] == "linear"
    refused = run(*folder, "--cost", "seconds", "--leaf", "torch.nn:Tanh")
    assert refused.exit_code == 2
    assert "--cost seconds, --leaf torch.nn:Tanh asks for a new conversion" in " ".join(refused.stderr.split())


def test_a_batch_of_one_sample_has_no_variance(tmp_path):
    code = "import torch\nfrom torch import nn\n"
    layers = "*[nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(3)]"
    code += f"def normed(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), {layers}, nn.Linear(8, 10))\n"
    (tmp_path / "normed.py").write_text(code)
    words = ("--method", "serial", "--image-size", 8, "--count", "1,1", "--out", "run", "--no-tensorboard")
    result = run("train", "normed.py:normed", *words)
    assert result.exit_code == 2
    assert "DataError: a batch of 1 sample gives a batch norm one value of each channel" in result.stderr
    assert not (tmp_path / "run").exists()
