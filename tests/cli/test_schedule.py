"""``pararealize schedule``: the timeline that the library gives, printed and written."""

import json

import pytest
import torch

import pararealize as library
from pararealize import Timeline, Transfer, capture, find_blocks, make_plan, models, pararealize, simulate
from pararealize.plan.trace import chrome_trace
from tests import models as models_file
from tests.command import run


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
    options = ["--no-overlap", "--reduce-linear", "--inference", "--ranks", 2, "--rate", 10, "--batch-size", 4]
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


def test_windows_and_sequential_blocks(tmp_path):
    options = ("--n", "2", "--windows", "stage2.0,stage3.0", "--sequential", "3")
    printed = run("convert", "resnet20", *options, "--coarse", "linear", "--no-weights").stdout
    for text in ("3 windows of at most 2 segments", "g3_2", "C2_2", "F2_1", "the value before their window"):
        assert text in printed
    words = ["schedule", "resnet20", "--json"]
    direct = json.loads(run(*words, *options).stdout)
    file = tmp_path / "plan.json"
    plan = pararealize(models.resnet20(), 2, windows=["stage2.0", "stage3.0"], sequential=3).plan
    file.write_text(plan.to_json())
    assert json.loads(run(*words, "--plan", file).stdout) == direct
    assert json.loads(run(*words, "--n", "2").stdout) != direct
    for given in (["--windows", "4"], ["--sequential", "2"], ["--windows", "auto", "--sequential", "stage1.0"]):
        refused = run(*words, "--plan", file, *given)
        assert refused.exit_code == 2
        message = json.loads(refused.stdout)["error"]["message"]
        assert " and the plan has other windows" in message
        assert any(f"{option} is " in message for option in given[::2])


def test_schedule_measures(tmp_path):
    value = json.loads(run("schedule", "resnet20", "--n", 2, "--seconds", "--batch-size", 4, "--json").stdout)
    assert "measured seconds" in value["timeline"]["notes"]
    assert value["step"] > 0
    file = tmp_path / "plan.json"
    file.write_text(pararealize(models.resnet20(), 2, coarse="linear", windows=2).plan.to_json())
    value = json.loads(run("schedule", "resnet20", "--plan", file, "--seconds", "--json").stdout)
    assert {action["m"] for action in value["timeline"]["actions"] if action["kind"] == "fine"} == {1, 2}


def test_finest_blocks(tmp_path):
    """Stand in the plan's file, which says what blocks there are: the option must not say it too."""
    model = (f"{models_file.__file__}:LanguageModel", "--input", "ids=2x7:int64")
    finest = ("--granularity", "finest")
    blocks = json.loads(run("inspect", *model, *finest, "--json").stdout)["blocks"]
    assert [block["name"] for block in blocks[:2]] == ["layers.0.qkv", "layers.0.mlp"]
    assert len(blocks) == 2 * len(json.loads(run("inspect", *model, "--json").stdout)["blocks"])
    page = tmp_path / "page.html"
    written = run(
        "convert", *model, "-n", 3, "--sequential", 2, "--coarse", "linear", *finest, "--out", tmp_path / "net",
        "--report", page,
    )  # fmt: skip
    assert written.exit_code == 0, written.output
    assert "layers.1.mlp" in page.read_text()
    file = tmp_path / "net" / "plan.json"
    planned = json.loads(run("schedule", *model, "--plan", file, "--json").stdout)
    options = ("-n", 3, "--sequential", 2, "--coarse", "linear", *finest)
    assert planned == json.loads(run("schedule", *model, *options, "--json").stdout)
    assert planned == json.loads(run("schedule", *model, "--plan", file, *options[2:], "--json").stdout)
    other = run("convert", *model, "--plan", file, "--granularity", "repeated", "--json")
    assert other.exit_code == 0  # not at its default would be said; the plan says which blocks it is of


PERCEPTRON = f"{models_file.__file__}:Perceptron"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network's folder, converted with a module that is not looked into."""
    path = tmp_path_factory.mktemp("schedule") / "net"
    net = pararealize(models_file.Perceptron(), 2, example_inputs=torch.randn(3, 8), leaf_modules=["1"])
    return net.save(path, model=PERCEPTRON)


def test_a_plan_that_is_there_is_not_asked_for_anew(folder):
    """What options of a conversion say may be said again; what contradicts the plan would change nothing."""
    of_folder, of_file = (folder, "--built-by", PERCEPTRON), (PERCEPTRON, "--input-shape", 8, "--leaf", 1)
    of_file = (*of_file, "--plan", folder / "plan.json")
    assert run("schedule", *of_file, "--n", 2).exit_code == 0
    assert run("schedule", *of_file, "--cuts", "cost", "--coarse", "paper", "--n", 2).exit_code == 0
    for words, message in [
        ((*of_file, "--n", 3), "--n is 3 and the plan is for 2"),
        ((*of_file, "--coarse", "linear", "--cuts", "paper"), "--coarse is 'linear', and the plan says 'paper'"),
        ((*of_file, "--seconds", "--source", "stem"), "--source is 'stem', and the plan says 'input'"),
        ((*of_folder, "--coarse", "linear"), "--coarse is 'linear', and the plan says 'paper'"),
        ((*of_file, "--sequential", "0,"), "--sequential is ['0'], and the plan has other windows"),
    ]:
        refused = run("schedule", *words, "--json")
        assert refused.exit_code == 2
        error = json.loads(refused.stdout)["error"]
        assert (error["type"], message in error["message"]) == ("PlanError", True), error


def test_a_folder_is_measured_at_the_batch_that_is_asked_for(folder, monkeypatch):
    """Its modules that are not looked into need not be named again."""
    sizes = []
    measure = library.measure_network
    monkeypatch.setattr(library, "measure_network", lambda net, x: sizes.append(len(x[0])) or measure(net, x))
    for words, samples in (((), 3), (("--batch-size", 5), 5)):
        done = run("schedule", folder, "--built-by", PERCEPTRON, "--seconds", "--json", *words)
        assert done.exit_code == 0, done.output
        timeline = json.loads(done.stdout)["timeline"]
        assert any(f"batch {samples}," in note for note in timeline["notes"])
        assert sizes.pop() == samples
