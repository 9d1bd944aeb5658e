"""Every error that the command ends with speaks of flags, and of no Python arguments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pararealize_cli.flags import in_flags
from tests.command import run

PYTHON = re.compile(
    r"example_inputs|leaf_modules|num_classes|data_dir|torch\.(zeros|randn|long)|\bnet\.|\.plan\b"
    r"|to_json|from_json|\w=(\[|\{|True|False|None|'|\")"
    r"|\b(source|coarse|cuts|windows|sequential|plan|n|strict|scheme|h) = |callable \("
)

NETWORKS = """
import torch
from torch import nn


def embedding():
    return nn.Sequential(nn.Embedding(10, 8), *[nn.Linear(8, 8) for _ in range(5)])


def linear():
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)])


def several():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(5)])

        def forward(self, input_ids, attention_mask=None, use_cache=True):
            x = self.table(input_ids)
            if attention_mask is not None:
                x = x * attention_mask[..., None]
            x = self.layers(x)
            return (x, [x]) if use_cache else x

    return Several()


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if x.sum() > 0:
                x = x.relu()
        return x


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)]), nn.Linear(8, 2)

    def forward(self, x):
        x = self.layers(x)
        return (self.head(x), x) if self.training else self.head(x)


class Sorted(nn.Module):
    def forward(self, x):
        return x.msort()


def sorted_maps():
    units = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), Sorted(), nn.ReLU()) for _ in range(5)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *units)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8 * (i + 1), 8) for i in range(5))

    def forward(self, x):
        values = [x]
        for layer in self.layers:
            values.append(layer(torch.cat(values, -1)))
        return torch.cat(values, -1)


def opaque_branch():
    return nn.Sequential(nn.Linear(8, 8), Branch(), nn.Linear(8, 8))


def no_module():
    return 3


def bad_coarse(segment, x_shape, y_shape):
    return None


def raising_coarse(segment, x_shape, y_shape):
    raise ValueError("nothing fits")
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "networks.py").write_text(NETWORKS)
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "text.json").write_text("no plan")
    (tmp_path / "old.json").write_text('{"version": 0}')
    (tmp_path / "weights.safetensors").write_text("no weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


VECTOR = "--input-shape 8 --input-dtype float32"
MASKED = (
    "convert networks.py:several -n 2 --input input_ids=2x5:int64 --input attention_mask=2x5:int64 --coarse linear "
    "--out net"
)
FAILING = {  # what is typed, and what the message must offer
    "convert networks.py:embedding -n 2": "--input-shape 128 --input-dtype int64",
    "inspect networks.py:embedding": "--input-shape 128 --input-dtype int64",
    "restack networks.py:embedding": "--input-shape 128 --input-dtype int64",
    "schedule networks.py:embedding -n 2": "--input-shape 128 --input-dtype int64",
    "schedule networks.py:embedding -n 2 --seconds": "--input-shape",
    "convert networks.py:several -n 2": "--input-shape 128 --input-dtype int64",
    "convert networks.py:several -n 2 --input ids=2x5:int64": "name each with --input",
    "convert networks.py:several -n 2 --input input_ids=2y5:int64": "NAME=SHAPE:DTYPE",
    "convert networks.py:several -n 2 --input input_ids": "NAME=SHAPE:DTYPE",
    "convert networks.py:several -n 2 --input =2x5": "NAME=SHAPE:DTYPE",
    "convert networks.py:several -n 2 --input input_ids=2x0": "NAME=SHAPE:DTYPE",
    "convert networks.py:several -n 2 --input input_ids=2x5:int46": "did you mean int64",
    "convert networks.py:several -n 2 --input input_ids=2x5:number": "float32, bfloat16, int64",
    "convert networks.py:several -n 2 --input use_cache=false": "at least one",
    "convert networks.py:several -n 2 --input input_ids=2x5:int64 --input input_ids=2x5:int64": "there twice",
    "convert networks.py:several -n 2 --input input_ids=2x5:int64 --input-shape 5": "--input and --input-shape",
    "convert networks.py:several -n 2 --input input_ids=2x5": "--input NAME=SHAPE:DTYPE",
    "convert networks.py:several -n 2 --input input_ids=2x5:int64 --input use_cache=no": "NAME=SHAPE:DTYPE",
    f"convert networks.py:linear -n 9 {VECTOR}": "--n from 1 to 5",
    f"convert networks.py:linear -n 0 {VECTOR}": "--n is 0",
    f"convert networks.py:linear -n 3 {VECTOR} --coarse papr": "'paper'",
    f"convert networks.py:linear -n 3 {VECTOR} --coarse networks.py:bad_coarse": "has to return",
    f"convert networks.py:linear -n 3 {VECTOR} --coarse networks.py:raising_coarse": "nothing fits",
    f"convert networks.py:linear -n 3 {VECTOR} --coarse networks.py:nothing": "networks.py",
    f"convert networks.py:linear -n 3 {VECTOR} --cuts 9": "is not the name of a block",
    f"convert networks.py:linear -n 3 {VECTOR} --sequential 7": "--sequential 7 is out of range",
    f"convert networks.py:linear -n 3 {VECTOR} --sequential 1 --source input": "--source stem",
    f"convert networks.py:linear -n 3 {VECTOR} --devices cuda:77": "cuda:77",
    f"convert networks.py:linear -n 3 {VECTOR} --devices ,": "--devices",
    f"convert networks.py:linear -n 3 {VECTOR} --leaf networks.py:no_module": "not a class",
    f"convert networks.py:linear -n 3 {VECTOR} --leaf layer": "--leaf names",
    f"convert networks.py:linear -n 3 {VECTOR} --batch-size 0": "--batch-size",
    "convert networks.py:linear -n 3 --input-shape 8x": "--input-shape",
    "convert networks.py:linear -n 3 --input-shape 7": "--input-shape and --input-dtype",
    "convert networks.py:linear -n 3 --input-shape 8 --input-dtype number": "--input-dtype",
    f"convert networks.py:Branch -n 3 {VECTOR}": "move it into a module of its own",
    f"convert networks.py:opaque_branch -n 3 {VECTOR}": "--leaf 1",
    f"convert networks.py:Auxiliary -n 3 {VECTOR}": "--leaf package.module:Class",
    f"convert networks.py:Dense -n 30 {VECTOR}": "an integer --n from 1 to",
    "convert networks.py:sorted_maps -n 3 --input-shape 3,8,8": "--leaf package.module:Sorted",
    f"convert networks.py:no_module -n 3 {VECTOR}": "Module",
    "convert networks.py:nothing -n 3": "networks.py",
    "convert nothing.py:net -n 3": "nothing.py",
    "convert resnet21 -n 3": "did you mean",
    "convert resnet20 -n 3 --out networks.py": "--out",
    f"restack networks.py:linear {VECTOR}": "residual",
    "restack resnet20 --scheme rk9": "rk4",
    "restack resnet20 --scheme networks.py:no_module": "--scheme",
    "restack resnet20 --h 0": "--h is 0",
    "schedule resnet20": "--n 12, or --plan",
    "schedule resnet20 --plan plan.json": "pararealize convert",
    "schedule resnet20 --plan text.json": "pararealize convert",
    "schedule resnet20 --plan old.json": "pararealize convert",
    "schedule resnet20 --plan none.json": "plan.json",
    "schedule resnet20 -n 3 --ranks 9": "--ranks",
    "schedule resnet20 -n 3 --latency -1": "latency",
    "schedule resnet20 -n 3 --rate 0": "rate",
    "calibrate resnet20 --weights weights.safetensors -n 3": "safetensors",
    "calibrate resnet20 --weights none.safetensors -n 3": "safetensors",
    "train resnet20 -n 3 --data digit": "digits",
    "train resnet20 --epochs 1": "--n",
    "train resnet20 -n 3 --method serially": "serial",
    "train resnet20 -n 3 --method serial": "--method parareal",
    "train resnet20 -n 3 --lr 0": "--lr is 0",
    "train resnet20 -n 3 --label-smoothing 2": "--label-smoothing is 2",
    "train resnet20 -n 3 --milestones b": "--milestones",
    "train resnet20 --method multigrid --iterations 3": "--iterations",
    "train resnet20 --method multigrid --relaxation G": "--relaxation",
    "train resnet20 -n 3 --resume --force": "--resume",
    "train resnet20 -n 3 --ranks 2": "--ranks",
    "demo --model resnet21": "did you mean",
    "demo --model resnet20 --n 99": "--n",
}


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("words", FAILING)
def test_every_error_of_the_command_speaks_of_flags(words: str) -> None:
    done = run(*words.split())
    assert done.exit_code == 2, done.output
    message = re.sub(r"\s+", " ", done.output)
    assert "Error" in message
    assert FAILING[words] in message, message
    # what stays Python is the model's own: the signature of its forward, how it is built
    assert not PYTHON.search(re.sub(r"forward\(.*?\)|\(aux_logits=False\)", "", message)), message


@pytest.mark.usefixtures("networks")
def test_messages_in_json_do_too() -> None:
    done = run("convert", "networks.py:embedding", "-n", 2, "--json")
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ExampleError"
    assert error["message"].endswith("pass --input-shape 128 --input-dtype int64")


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    "words",
    [
        MASKED,
        "convert networks.py:several -n 2 --input input_ids=2,5:long --input use_cache=False --coarse linear --out net",
        "convert networks.py:opaque_branch -n 1 --input-shape 8 --leaf 1 --out net",
        "convert networks.py:opaque_branch -n 1 --input-shape 8 --leaf networks.py:Branch --out net",
    ],
)
def test_inputs_by_name_and_leaves_by_name_convert_and_are_written(words: str) -> None:
    done = run(*words.split())
    assert done.exit_code == 0, done.output
    scope: dict[str, object] = {"__file__": str(Path("net/model.py").resolve())}
    exec(Path("net/model.py").read_text(), scope)
    assert scope["load"](words.split()[1]).plan.n in (1, 2)  # type: ignore[operator]


def test_prose_stays_prose() -> None:
    message = "2 coarse blocks of n segments, source code, cuts; build the model without them (aux_logits=False)"
    assert in_flags(message, ["coarse", "n", "source", "cuts"]) == message
    assert in_flags("take scheme='rk4', or pass strict=False", ["scheme"]) == "take --scheme rk4, or pass --no-strict"
