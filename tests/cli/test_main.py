"""The command: what it prints, writes and refuses, each in one clean message."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from pararealize import (
    Plan,
    Timeline,
    Transfer,
    capture,
    find_blocks,
    make_plan,
    models,
    pararealize,
    restack,
    simulate,
)
from pararealize.errors import CoarseError, DeviceError, ExampleError, ModelError, OutputError
from pararealize.plan.trace import chrome_trace
from pararealize_cli import arguments
from pararealize_cli.console import working
from pararealize_cli.folder import output_folder
from pararealize_cli.main import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


# -------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("text", ["3,32,32", "3x32x32", "3×32×32", " 3, 32, 32 "])
def test_shape(text):
    assert arguments.shape(text) == (3, 32, 32)


@pytest.mark.parametrize("text", ["", "3,,32", "3,-1", "3,0", "three", "3.5"])
def test_bad_shape(text):
    with pytest.raises(ExampleError, match="write positive sizes"):
        arguments.shape(text)


def test_example():
    assert arguments.example("resnet20", None, "float32", 4).shape == (4, 3, 32, 32)
    assert arguments.example("torch.nn:Flatten", None, "float32", 4) is None
    tokens = arguments.example("torch.nn:Flatten", "128", "int64", 2)
    assert tokens.dtype is torch.int64
    assert tokens.eq(0).all()
    assert arguments.example("resnet20", None, "float32", 4, meta=True).is_meta
    with pytest.raises(ExampleError, match="--input-dtype 'number'"):
        arguments.example("resnet20", None, "number", 4)
    with pytest.raises(ExampleError, match="--batch 0"):
        arguments.example("resnet20", None, "float32", 0)


def test_cuts():
    assert arguments.cuts("cost") == "cost"
    assert arguments.cuts("paper") == "paper"
    assert arguments.cuts("layer2.0, layer3.0") == ["layer2.0", "layer3.0"]
    assert arguments.cuts("layer2.0") == ["layer2.0"]


def test_devices():
    assert arguments.devices(None) is None
    assert arguments.devices("cuda:0, cpu") == ["cuda:0", "cpu"]
    with pytest.raises(DeviceError, match="names no device"):
        arguments.devices(",")


def test_coarse():
    assert arguments.coarse("block") == "block"
    assert callable(arguments.coarse("torch.nn:Identity"))
    with pytest.raises(CoarseError, match="cannot be called"):
        arguments.coarse("math:pi")


def test_leaf_modules():
    assert arguments.leaf_modules(["torch.nn:Flatten"]) == (torch.nn.Flatten,)
    assert arguments.leaf_modules(None) == ()
    with pytest.raises(ExampleError, match="not a class"):
        arguments.leaf_modules(["math:pi"])


# ----------------------------------------------------------------------------------------------------------- folder


def test_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "out"
    with output_folder(path, force=False) as folder:
        (folder / "plan.json").write_text("{}")
        assert not path.exists()
    assert [entry.name for entry in path.iterdir()] == ["plan.json"]

    def fail_half_way():
        with output_folder(tmp_path / "b", force=False) as folder:
            (folder / "plan.json").write_text("{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a"]
    assert path.stat().st_mode & 0o700 == 0o700


def test_folder_is_kept_unless_forced(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "plan.json").write_text("old")
    with pytest.raises(OutputError, match=r"there already.*--force"), output_folder(path, force=False):
        pass
    with pytest.raises(RuntimeError), output_folder(path, force=True):
        raise RuntimeError
    assert (path / "plan.json").read_text() == "old"
    with output_folder(path, force=True) as folder:
        (folder / "model.py").write_text("new")
    assert [entry.name for entry in path.iterdir()] == ["model.py"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_force_does_not_remove_what_others_wrote(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"), output_folder(tmp_path, force=True):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is a file and not a folder"), output_folder(file, force=True):
        pass
    with pytest.raises(OutputError, match="cannot write to"), output_folder(file / "out", force=False):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), output_folder(tmp_path / "out", force=False):
        pass


# ---------------------------------------------------------------------------------------------------------- command


def test_help_is_quick_and_has_examples():
    """Help must not wait for torch to be imported."""
    code = "import sys, pararealize_cli.main; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    for command in ("convert", "inspect", "calibrate", "train", "demo"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"pararealize {command}" in result.stdout
        assert "\\" not in result.stdout  # examples are lines to be copied


def test_ls():
    names = json.loads(run("ls", "--json").stdout)
    assert "resnet1001" in names["built-in"]
    assert len(names["torchvision"]) >= 80
    printed = run("ls").stdout
    assert "resnet1001" in printed
    assert "vit_b_16" in printed


def test_unknown_option_and_no_command():
    assert run("convert", "resnet20").exit_code == 2
    assert run("convert", "resnet20", "--n", "two").exit_code == 2
    assert run("nothing").exit_code == 2


@pytest.mark.parametrize(
    "words, error, message",
    [
        (["convert", "resnet21", "--n", "2"], ModelError, "did you mean"),
        (["convert", "resnet20", "--n", "2", "--input-shape", "three"], ExampleError, "--input-shape"),
        (["convert", "resnet20", "--n", "2", "--batch", "0"], ExampleError, "--batch"),
        (["convert", "resnet20", "--n", "2", "--out", "{file}"], OutputError, "is a file"),
        (["inspect", "no_such_package:net"], ModelError, "no Python module"),
    ],
)
def test_an_error_is_one_message(words, error, message, tmp_path):
    (tmp_path / "file").write_text("")
    words = [word.format(file=tmp_path / "file") for word in words]
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert error.__name__ in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    result = run(*words, "--json")
    assert result.exit_code == 2
    reported = json.loads(result.stdout)["error"]
    assert reported["type"] == error.__name__
    assert message in reported["message"]


# ---------------------------------------------------------------------------------------------------------- convert


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert") / "out"
    return folder, run("convert", "resnet20", "--n", "3", "--seed", "5", "--out", folder)


def test_convert_prints_the_plan_and_writes_four_files(converted):
    folder, result = converted
    assert result.exit_code == 0
    for part in ["resnet20: 3 segments", "g3", "stage3.2", "64×8×8", "predicted speed-up", "weights.safetensors"]:
        assert part in result.stdout
    assert {path.name for path in folder.iterdir()} == {"plan.json", "weights.safetensors", "model.py", "network.svg"}
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
    loaded = imported(out, monkeypatch).load()
    assert loaded.out.weight is loaded.embedding.weight
    assert loaded(torch.zeros(3, 5, dtype=torch.long)).shape == (3, 5, 11)


def test_convert_json_and_no_weights(tmp_path):
    result = run(
        "convert", "resnet20", "--n", "2", "--no-weights", "--json", "--picture", "png", "--out", tmp_path / "o"
    )
    value = json.loads(result.stdout)
    assert value["files"] == ["plan.json", "model.py", "network.png"]
    assert value["plan"]["n"] == 2
    assert value["predicted"]["virtual_speedup"] > 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted(value["files"])


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


# --------------------------------------------------------------------------------------------------- inspect and demo


def test_inspect():
    result = run("inspect", "resnet20")
    assert result.exit_code == 0
    assert "9 blocks in 3 stages" in result.stdout
    assert "cut points refused" in result.stdout
    value = json.loads(run("inspect", "resnet20", "--json").stdout)
    assert len(value["blocks"]) == 9


def test_demo(tmp_path):
    words = ["demo", "--model", "resnet20", "--n", "3", "--steps", "25", "--image-size", "16", "--lr", "0.003"]
    result = run(*words, "--plot", tmp_path / "loss.svg")
    assert result.exit_code == 0
    assert "step 25 of 25" in result.stdout
    assert (tmp_path / "loss.svg").exists()
    value = json.loads(run(*words, "--json").stdout)
    losses = value["losses"]
    assert len(losses) == 25
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


# --------------------------------------------------------------------------------------------------------- schedule


def test_schedule_prints_a_table():
    result = run("schedule", "resnet20", "--n", 3, "--coarse", "linear", "--latency", 5, "--bandwidth", 12)
    assert result.exit_code == 0, result.output
    assert "PreActResNet: one simulated step, n = 3 on 3 devices" in result.stdout
    assert "critical path: " in result.stdout
    assert "note: batch 2, latency 5e-06 s, bandwidth 1.2e+10 bytes/s" in result.stdout


def test_schedule_writes_its_files(tmp_path):
    folder = tmp_path / "out"
    words = ("schedule", "resnet20", "--n", 3, "--out", folder)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == ["timeline.json", "timeline.svg", "trace.json"]
    timeline = Timeline.from_json((folder / "timeline.json").read_text())
    assert timeline == simulate(pararealize(models.resnet20(), 3).plan)
    assert json.loads((folder / "trace.json").read_text()) == chrome_trace(timeline)
    assert run(*words).exit_code == 2
    (folder / "timeline.svg").unlink()
    assert run(*words, "--force", "--picture", "png").exit_code == 0
    assert (folder / "timeline.png").exists()
    (folder / "mine.txt").write_text("mine")
    assert "mine.txt" in run(*words, "--force").stderr
    assert (folder / "mine.txt").exists()


def test_schedule_as_json_with_every_option():
    options = ["--no-overlap", "--reduce-linear", "--inference", "--ranks", 2, "--rate", 10, "--batch", 4]
    value = json.loads(run("schedule", "resnet20", "-n", 3, "--coarse", "linear", "--json", *options).stdout)
    plan = pararealize(models.resnet20(), 3, coarse="linear", example_inputs=torch.randn(4, 3, 32, 32)).plan
    how = {"overlap": False, "reduce_linear": True, "training": False, "ranks": 2, "rate": 1e13, "batch": 4}
    expected = simulate(plan, **how)
    assert value["timeline"] == json.loads(expected.to_json())
    assert value["speedup"] == expected.speedup


def test_schedule_cuts_with_messages():
    words = ["schedule", "resnet20", "-n", 4, "--json", "--latency", 200, "--bandwidth", 0.1, "--rate", 0.1]
    value = json.loads(run(*words).stdout)
    plan = make_plan(
        find_blocks(capture(models.resnet20(), torch.randn(2, 3, 32, 32))), 4, transfer=Transfer(2e-4, 1e8), rate=1e11
    )
    assert value["timeline"] == json.loads(simulate(plan, latency=2e-4, bandwidth=1e8, rate=1e11).to_json())


def test_schedule_of_a_plan(tmp_path):
    plan = pararealize(models.resnet20(), 2, coarse="linear").plan
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    value = json.loads(run("schedule", "resnet20", "--plan", file, "--json").stdout)
    assert value["timeline"] == json.loads(simulate(plan).to_json())
    for wrong in (["resnet32", "--plan", file], ["resnet20", "--plan", tmp_path / "none.json"], ["resnet20"]):
        value = run("schedule", *wrong, "--json")
        assert value.exit_code == 2
        assert json.loads(value.stdout)["error"]["type"] == "PlanError"


def test_blocks_in_the_stem(tmp_path):
    words = ("convert", "resnet20", "--n", "2", "--stem-blocks", "3", "--no-weights", "--json")
    plan = json.loads(run(*words).stdout)["plan"]
    assert (plan["stem_blocks"], plan["source"], plan["segments"][0]["first_block"]) == (3, "stem", "stage2.0")
    words = ["schedule", "resnet20", "--json"]
    direct = json.loads(run(*words, "--n", "2", "--stem-blocks", "3").stdout)
    file = tmp_path / "plan.json"
    file.write_text(pararealize(models.resnet20(), 2, stem_blocks=3).plan.to_json())
    assert json.loads(run(*words, "--plan", file).stdout) == direct
    assert json.loads(run(*words, "--n", "2").stdout) != direct
    assert run(*words, "--plan", file, "--stem-blocks", "2").exit_code == 2


def test_schedule_measures():
    value = json.loads(run("schedule", "resnet20", "--n", 2, "--seconds", "--batch", 4, "--json").stdout)
    assert "measured seconds" in value["timeline"]["notes"]
    assert value["step"] > 0


# ---------------------------------------------------------------------------------------------------------- restack

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


def test_restack_takes_a_tableau_from_a_file(tmp_path):
    (tmp_path / "tables.py").write_text(HEUN)
    out = tmp_path / "out"
    result = run("restack", "resnet20", "--scheme", f"{tmp_path}/tables.py:heun", "--out", out)
    assert result.exit_code == 0, result.output
    spec = importlib.util.spec_from_file_location("heun_network", out / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.load().restacking.scheme == "heun"
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


@pytest.mark.parametrize("every, told", [(None, ""), (0.0, "fitting F1\n"), (3600.0, "")])
def test_a_log_is_told_of_long_work_now_and_then(every, told, capsys):
    with working("building a model", every=every) as progress:
        progress("fitting F1")
    assert capsys.readouterr().err == told


def test_stdout_holds_results_alone_where_libraries_write_to_it():
    """Gloo of torch 2.10 greets its peers on stdout, from below Python, and at any time until the process ends."""
    code = "import ctypes; from pararealize_cli.console import keep_stdout as keep; keep(); print('result')"
    code += "; ctypes.CDLL(None).puts(b'greeting')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert "greeting" in done.stderr
