"""``pararealize restack``: a folder that loads as the network that the library gives."""

import importlib.util
import json
import shutil

import pytest
import torch

from pararealize import models, pararealize, restack
from tests.command import run

HEUN = """
from fractions import Fraction
from pararealize import Tableau

heun = Tableau(name="heun", a=[[], [1]], b=[Fraction(1, 2)] * 2, order=2)
number = 3
"""


def test_restack_prints_what_it_did():
    result = run("restack", "resnet20", "--scheme", "midpoint")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("PreActResNet as midpoint (2 stages, order 2), h = 1: 3 steps of 6 residual blocks")
    assert "left stage2.0: its shortcut is not the identity but stage2.0.projection" in result.stdout


@pytest.mark.parametrize("options", [[], ["--adaptive", "output", "--h", "0.5", "--num-classes", "7"]])
def test_restack_writes_a_network_that_can_be_loaded(tmp_path, options):
    folder = tmp_path / "out"
    result = run("restack", "resnet20", "--scheme", "midpoint", "--out", folder, "--json", *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["files"] == ["restacking.json", "weights.safetensors", "model.py"]
    assert json.loads((folder / "restacking.json").read_text()) == told["restacking"]
    spec = importlib.util.spec_from_file_location("restacked_network", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(5)
    net = module.load().eval()
    torch.manual_seed(0)
    classes = 7 if options else 10
    arguments = {"adaptive": "output", "h": 0.5} if options else {}
    expected = restack(models.build("resnet20", num_classes=classes), "midpoint", **arguments).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x), expected(x))
    assert sum(p.numel() for p in net.parameters()) == told["parameters"]
    assert run("restack", "resnet20", "--scheme", "midpoint", "--out", folder).exit_code == 2
    assert run("restack", "resnet20", "--scheme", "midpoint", "--out", folder, "--force").exit_code == 0


def test_restack_takes_a_networks_folder(tmp_path):
    """The file says how the original in the folder is built, and needs the folder no more."""
    pararealize(models.resnet20(), 2, coarse="linear").save(tmp_path / "saved")
    assert run("restack", tmp_path / "saved", "--scheme", "midpoint", "--out", tmp_path / "out").exit_code == 0
    shutil.rmtree(tmp_path / "saved")
    spec = importlib.util.spec_from_file_location("of_a_folder", tmp_path / "out" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.load()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_restack_takes_a_tableau_from_a_file(tmp_path):
    (tmp_path / "tables.py").write_text(HEUN)
    out = tmp_path / "out"
    result = run("restack", "resnet20", "--scheme", f"{tmp_path}/tables.py:heun", "--out", out)
    assert result.exit_code == 0, result.output
    spec = importlib.util.spec_from_file_location("heun_network", out / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.load().restacking.scheme == "heun"
    assert module.load(models.resnet20()).restacking.scheme == "heun"
    assert str(tmp_path) not in (out / "model.py").read_text()  # it holds where both are moved to
    result = run("restack", "resnet20", "--scheme", f"{tmp_path}/tables.py:number", "--json")
    assert json.loads(result.stdout)["error"]["type"] == "TableauError"


@pytest.mark.parametrize(
    "words, error",
    [
        (["resnet20", "--scheme", "rk5"], "TableauError"),
        (["resnet20", "--scheme", "rk8"], "RestackError"),
        (["resnet20", "--h", "-1"], "RestackError"),
        (["vgg11", "--input-shape", "3,32,32"], "RestackError"),
    ],
)
def test_restack_refuses_in_one_message(tmp_path, words, error):
    out = tmp_path / "out"
    result = run("restack", *words, "--out", out, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == error
    assert not list(tmp_path.iterdir())
