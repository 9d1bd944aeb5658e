"""``--report``: a page with the sections of its command, refusals before any work, and JSON as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

from pararealize_cli.html import command_line
from tests.command import run
from tests.reports.pages import read, small_net

MODEL = "tests.reports.pages:small_net"
SMALL = ("--image-size", 8, "--batch-size", 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "trained.safetensors"
    save_model(small_net(), str(path))
    return path


def check(page: Path, words: list[object], *expected: str) -> None:
    result = run(*words, "--report", page)
    assert result.exit_code == 0, result.output
    assert f"report written to {page}" in " ".join(result.stdout.split())
    shown = read(page)
    assert (shown.faults, shown.strangers) == ([], [])
    for title in expected:
        assert title in shown.text, title
    assert "seed 0" in shown.text


def test_inspect_convert_schedule_restack(tmp_path: Path) -> None:
    shape = ("--input-shape", "3,8,8")
    check(tmp_path / "a.html", ["inspect", MODEL, *shape], "Stage by stage", "Cut points refused", "Guards")
    words = ["convert", MODEL, "--n", 2, "--windows", 2, "--no-weights", *shape]
    check(tmp_path / "b.html", words, "Window 2", "To scale", "receptive field", "One step in time", "Coarse blocks F")
    words = ["schedule", MODEL, "--n", 2, *shape, "--latency", 5]
    check(tmp_path / "c.html", words, "One step on 2 devices, predicted", "critical path", "Segments")
    words = ["restack", MODEL, "--scheme", "midpoint", *shape]
    check(tmp_path / "d.html", words, "High-order stacking", "Steps", "Blocks, equal ones together")


def test_plan(tmp_path: Path) -> None:
    words = ["plan", MODEL, "--devices", 2, "--input-shape", "3,8,8", "--no-curves"]
    check(tmp_path / "a.html", words, "Strategies", "A training step of", "data parallel")


def test_calibrate_and_evaluate(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "net"
    words = ["calibrate", MODEL, "--weights", weights, "--n", 2, "--coarse", "linear", *SMALL, "--out", folder]
    check(tmp_path / "a.html", words, "Calibration", "residual norms", "Part by part", "One step in time")
    words = ["evaluate", folder, "--weights", weights, "--built-by", MODEL, *SMALL, "--batch-sizes", 0]
    check(tmp_path / "b.html", words, "Beside its original", "same class", "The network: net", "One step in time")


def test_tradeoff(tmp_path: Path, weights: Path) -> None:
    words = ["tradeoff", MODEL, "--weights", weights, "--n", 2, "--points", 1, "--tolerance", 100, *SMALL]
    check(tmp_path / "a.html", words, "Error against speed", "Plans", "The network: tests.reports.pages:small_net")


def test_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", MODEL, "--n", 2, "--coarse", "linear", "--epochs", 1, "--image-size", 8, "--no-tensorboard"]
    words += ["--batch-size", 512, "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["pararealize", *map(str, words)])
    check(tmp_path / "a.html", words, "Training", "Loss", "--epochs 1", "One step in time")
    shown = read(tmp_path / "a.html").text
    for title in (
        "One step on 2 devices, predicted",
        "One step on 1 device, predicted",
        "One step on 1 device, measured",
    ):
        assert title in shown


def test_json_stays_as_it_is_and_a_wrong_path_is_told_at_once(tmp_path: Path) -> None:
    words = ("inspect", MODEL, "--input-shape", "3,8,8", "--json")
    plain = run(*words)
    told = run(*words, "--report", tmp_path / "page.html")
    assert json.loads(told.stdout) == json.loads(plain.stdout)
    assert (tmp_path / "page.html").exists()
    (tmp_path / "letter.html").write_text("dear", encoding="utf-8")
    for path, fault in (("page.pdf", "ends in '.pdf'"), ("letter.html", "no report of pararealize")):
        refused = run("inspect", "no-such-model", "--report", tmp_path / path)
        assert refused.exit_code == 2
        assert fault in " ".join(refused.stderr.split())


def test_the_command_line_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_line(["x", "convert", "a b.py:net", "$(rm)"]) == "pararealize convert 'a b.py:net' '$(rm)'"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert command_line(["x", "train"]) == "torchrun --nproc-per-node 2 -m pararealize_cli train"


def test_a_page_is_beside_the_folders_that_hold_files_of_one_kind_alone(tmp_path: Path) -> None:
    net = tmp_path / "net"
    words = ("convert", MODEL, "--n", 2, "--no-weights", "--input-shape", "3,8,8", "--out", net)
    assert run(*words).exit_code == 0
    (tmp_path / "link").symlink_to(net)
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "run.json").touch()
    of_run = run("inspect", net, "--report", tmp_path / "old" / "page.html")
    assert (of_run.exit_code, "with a training run" in " ".join(of_run.stderr.split())) == (2, True)
    for page in (net / "page.html", tmp_path / "link" / "page.html"):
        for refused in (run(*words, "--force", "--report", page), run("inspect", net, "--report", page)):
            assert refused.exit_code == 2
            assert "write the page beside it" in " ".join(refused.stderr.split())
    page = tmp_path / "page.html"
    assert "beside it" in " ".join(run(*words[:-1], page, "--report", page).stderr.split())
    assert run("convert", net, "--built-by", MODEL, "--no-weights").exit_code == 0
    (tmp_path / "run").mkdir()
    trained = run("train", MODEL, "--n", 2, "--out", tmp_path / "run", "--report", tmp_path / "run" / "page.html")
    assert (trained.exit_code, "beside it" in " ".join(trained.stderr.split())) == (2, True)
