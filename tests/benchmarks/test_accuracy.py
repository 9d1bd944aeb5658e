"""The accuracy benchmark: networks, methods, tables by hand, the evidence in the package, the prepared CIFAR runs."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.archive_files import listed, write_cifar

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import groups, measure, methods, networks, tables, times
from benchmarks.harness import Results
from pararealize import capture, find_blocks
from pararealize.coarse.evidence_table import Evidence, evidence
from pararealize.coarse.family import family_of
from pararealize.errors import DataError
from pararealize_cli.main import app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "accuracy"
SHAPE = (1, 8, 8)


@pytest.mark.parametrize("family", networks.FAMILIES)
def test_families_are_deep_enough_and_known_to_auto(family):
    net = networks.build(family, SHAPE, 10)
    assert net(torch.randn(3, *SHAPE)).shape == (3, 10)
    chain = find_blocks(capture(net, torch.randn(2, *SHAPE)))
    assert len(chain.blocks) >= 12
    assert family_of(chain) == networks.FAMILIES[family].evidence


def test_every_method_of_a_seed_has_the_same_original():
    original = methods.make(methods.method_of("original"), "vit", SHAPE, 10, seed=3)
    for name in ("3-linear", "12-bottleneck@input", "6-linear+none", "6-bottleneck+adapters"):
        net = methods.make(methods.method_of(name), "vit", SHAPE, 10, seed=3)
        state = net.state_dict()
        assert all(torch.equal(state[key], value) for key, value in original.state_dict().items())


def test_ablations():
    made = {
        name: methods.make(methods.method_of(f"3-bottleneck{name}"), "resnet", SHAPE, 10, seed=0)
        for name in ("", "+none", "+adapters", "+coarse", "+wide")
    }
    assert all(p.requires_grad for p in made[""].parameters())
    assert not any(p.requires_grad for p in made["+adapters"].adapters.parameters())
    assert not any(p.requires_grad for p in made["+coarse"].coarse.parameters())
    assert methods.count(made["+wide"]) >= methods.count(made[""]) > methods.count(networks.build("resnet", SHAPE, 10))
    assert not list(made["+none"].coarse.parameters())
    x = torch.randn(2, *SHAPE, requires_grad=True)
    made["+none"](x).sum().backward()  # only the last segment is heard
    assert made["+none"].get_parameter("units.0.conv1.weight").grad is None
    with pytest.raises(SystemExit, match="no such ablation"):
        methods.method_of("3-linear+nothing")


def test_a_case_is_trained_and_shown(tmp_path):
    given = ["--families", "vgg", "--n", "3", "--kinds", "linear", "--seeds", "1", "--epochs", "1", "--workers", "1"]
    row = measure.measure("digits/vgg/3-linear/0", epochs=1)
    assert 0 <= row["error"] <= 1
    assert row["error"] == pytest.approx(row["errors"][-1], abs=1e-5)
    assert (row["steps"], row["test_images"], row["kinds"]) == (23, 360, ["linear"])
    results = Results(tmp_path / "results.json")
    for name in ("digits/vgg/original/0", "digits/vgg/3-linear/0"):
        results.add(name, row)
    assert command.main(["table1", *given, "--out", str(tmp_path)]) == 0  # nothing is left to do
    assert json.loads((tmp_path / "results.json").read_text())["rows"].keys() == results.rows.keys()
    assert "| VGG-16 with batch norm |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "trade.svg").stat().st_size > 1000


def rows_by_hand():
    """Three seeds: the original 10, 20, 30% wrong, a method 10, 10, 40%; a fourth seed that the original lacks."""
    rows = {f"digits/vit/original/{s}": {"error": e, "parameters": 9} for s, e in enumerate((0.1, 0.2, 0.3))}
    for s, e in enumerate((0.1, 0.1, 0.4, 0.9)):
        rows[f"digits/vit/6-linear/{s}"] = {"error": e, "parameters": 9, "coarse_share": 0.01, "speedup": 2.0}
    return rows | {"digits/vit/6-linear/9": {"failed": "timeout", "error": "late"}}


def test_means_and_evidence_by_hand():
    original, linear = groups.groups(rows_by_hand())
    assert tables.percent(original.errors) == "20.00 ± 10.00"
    assert linear.excesses == pytest.approx([0.0, -0.1, 0.1])
    assert linear.excess == pytest.approx(0.0)
    assert tables.excess_of(linear).lstrip("+-") == "0.00 ± 5.77"  # 10 / √3
    assert tables.excess_of(dataclasses.replace(linear, originals={})) == ""
    assert tables.excess_of(dataclasses.replace(linear, originals={2: {"error": 0.3}})) == "+10.00"
    assert tables.percent(linear.errors) == "37.50 ± 37.75"
    assert tables.evidence_of([original, linear]) == []  # a kind that was tried alone is no choice
    other = {name.replace("linear", "block"): row for name, row in rows_by_hand().items() if "linear" in name}
    several = {name.replace("6-linear", "6x2-linear"): row for name, row in rows_by_hand().items() if "linear" in name}
    first, *others = tables.evidence_of(groups.groups(rows_by_hand() | other | several))
    assert [row.kind for row in (first, *others)] == ["block", "linear"]  # and windows are another network
    assert others == [
        Evidence(
            family="attention", data="digits", n=6, kind="linear", source="stem", error=0.2, deviation=0.17321,
            original=0.2, original_deviation=0.1, seeds=3, coarse_share=0.01,
        )
    ]  # fmt: skip
    fewer = {name: row for name, row in rows_by_hand().items() if not name.endswith("original/2")}
    assert tables.evidence_of(groups.groups(fewer)) == []


def test_time_to_a_fixed_error_by_hand():
    """The original reaches 5% after 4 of 4 epochs of 2 s; the method after 2 and 3, at twice the speed a step."""
    original = {"errors": [0.5, 0.3, 0.2, 0.05], "train_seconds": 8.0, "error": 0.05}
    fast = {"train_seconds": 12.0, "speedup": 2.0, "coarse_share": 0.0, "error": 0.04}
    rows = {
        "digits/vit/original/0": original,
        "digits/vit/6-linear/0": fast | {"errors": [0.5, 0.04, 0.04, 0.04]},
        "digits/vit/6-linear/1": fast | {"errors": [0.5, 0.2, 0.05, 0.06]},
        "digits/vit/6-linear/2": fast | {"errors": [0.5, 0.4, 0.4, 0.4]},
    }
    *_, first, second = times.time_table(groups.groups(rows)).splitlines()
    assert first.endswith("| 5% | 1/1 | 4.0 | 8.0 | 8.0 | 1.00× |")
    assert second.endswith("| 5% | 2/3 | 2.5 | 7.5 | 2.5 | 3.20× |")


def test_names_of_methods_say_how_many_windows():
    method = methods.method_of("12x3-linear@input~2")
    assert (method.n, method.windows, method.windowed, method.kind) == (12, 3, True, "linear")
    assert methods.method_of("12xauto-low-rank:4").windows == "auto"
    assert methods.method_of("12-linear").windows == 1
    automatic = methods.method_of("4xauto-linear~auto")
    assert (automatic.stem_blocks, automatic.order, automatic.reads) == ("auto", 0, "stem, auto blocks")
    assert methods.shares(methods.make(automatic, "vgg", SHAPE, 10, seed=0).plan)["stem_share"] == pytest.approx(4 / 12)
    net = methods.make(methods.method_of("4x3-linear"), "vit", SHAPE, 10, seed=0)
    assert [window.n for window in net.plan.windows] == [4, 4, 4]
    costs = methods.shares(net.plan)
    assert (costs["windows"], costs["segments"], costs["summed_speedup"]) == (3, 4, net.plan.speedup)
    assert command.table1("vit", [6], ["linear"], ["1", "2", "auto"]) == [
        "original", "6-linear", "6x2-linear", "6xauto-linear"
    ]  # fmt: skip


def test_windows_have_a_column_a_picture_and_published_figures_beside_them(tmp_path):
    base = {"parameters": 9, "coarse_share": 0.01, "speedup": 2.0, "summed_speedup": 2.5, "segments": 3, "windows": 2}
    results = Results(tmp_path / "results.json")
    results.add("fashion_mnist/resnet56/original/0", {"error": 0.12, "parameters": 9})
    results.add("fashion_mnist/resnet56/6xauto-linear/0", base | {"error": 0.11})
    results.add("fashion_mnist/resnet56/6xauto-linear~auto/0", base | {"error": 0.1, "stem_share": 0.2})
    results.add("fashion_mnist/resnet56/6-paper@input/0", base | {"error": 0.13, "segments": 6, "windows": 1})
    tables.write(results, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "|  | 6 (3) | auto: 2 | linear | stem | 11.00 | 1 | -1.00 | 9 | 1.0% | 2.50 |" in text
    assert "|  | 6 (3) | auto: 1 | linear | stem, auto blocks | 10.00 | 1 | -2.00 | 9 | 1.0% | 2.50 |" in text
    assert "|  | 6 | 1 | paper | input | 13.00 | 1 | +1.00 | 9 | 1.0% | 2.50 |" in text
    assert "| ResNet-56, widths 16, 32, 64 |" in text
    assert (tmp_path / "windows.svg").stat().st_size > 1000


def test_a_data_set_whose_files_are_missing_is_left_out(tmp_path, monkeypatch, capsys):
    def no_files(*_, **__):
        raise DataError("there are no files of fashion_mnist; install dataset-fashion-mnist")

    monkeypatch.setattr(command, "load", no_files)
    given = ["--data", "fashion_mnist", "--families", "vit", "--seeds", "1", "--out", str(tmp_path)]
    assert command.main(["table1", *given]) == 0
    assert "LEFT OUT: fashion_mnist: DataError: there are no files" in capsys.readouterr().err


def test_the_evidence_in_the_package_is_that_of_the_results():
    found = tables.evidence_of(groups.groups(Results(FOLDER / "results.json").rows))
    assert list(evidence()) == found


def test_the_evidence_is_written_where_the_package_reads_it(tmp_path):
    tables.write_evidence(groups.groups(Results(FOLDER / "results.json").rows), tmp_path / "table.json")
    assert command.EVIDENCE.read_text() == (tmp_path / "table.json").read_text()


def commands(out, data, *flags, **environment):
    """What ``cifar.sh`` would run."""
    words = ["sh", str(FOLDER / "cifar.sh"), str(data), str(out), *map(str, flags)]
    variables = {"PARAREALIZE": "echo", "PATH": "/usr/bin:/bin"} | environment
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=variables)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_the_papers_runs(tmp_path):
    every = commands(tmp_path / "out", "data")
    assert len(every) == 2 * (1 + 2 * 4)
    for words in every:
        line = " ".join(words)
        assert line.startswith("train resnet1001 --data cifar10")
        assert "--epochs 200 --batch-size 128 --optimizer sgd --lr 0.1 --momentum 0.9 --weight-decay 5e-4" in line
        assert "--schedule steps --milestones 80,120 --gamma 0.1 --initialise he" in line
    assert sum("--cuts paper --source input" in " ".join(words) for words in every) == 8


def test_finished_runs_are_left_and_stopped_ones_go_on(tmp_path):
    finished, stopped = (tmp_path / f"resnet20-{name}-cifar10-0" for name in ("original", "n3-paper"))
    finished.mkdir()
    (finished / "weights.safetensors").touch()
    stopped.mkdir()
    every = commands(tmp_path, "data", MODEL="resnet20", DATA="cifar10", NUMBERS="3")
    assert [words[words.index("--out") + 1] for words in every] == [
        str(stopped), str(tmp_path / "resnet20-n3-auto-cifar10-0")
    ]  # fmt: skip
    assert ["--resume" in words for words in every] == [True, False]


@pytest.mark.parametrize("data", ["cifar100"])
def test_the_prepared_runs_on_a_few_images(tmp_path, monkeypatch, data):
    """Every command of the script, for a shallow network and one epoch, on files in CIFAR's own format."""
    write_cifar(data, tmp_path, (40, 10))
    listed(data, tmp_path, monkeypatch)
    flags = ("--epochs", 1, "--batch-size", 20, "--no-tensorboard")
    every = commands(tmp_path / "out", tmp_path, *flags, MODEL="resnet20", DATA=data, NUMBERS="3")
    assert len(every) == 3
    for words in every:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert (Path(words[words.index("--out") + 1]) / "weights.safetensors").exists()
