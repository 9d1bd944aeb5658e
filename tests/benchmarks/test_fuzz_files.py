"""The fuzzer of files: mutations are the same for ever and change something; every outcome is seen as what it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.fuzz_files import __main__ as command
from benchmarks.fuzz_files.mutations import mutated, mutated_json
from benchmarks.fuzz_files.targets.documents import difference
from benchmarks.fuzz_files.targets.folders import change_folder
from benchmarks.fuzz_files.targets.weights import Weights
from benchmarks.fuzz_files.trial import Limits, Trial, outcomes
from pararealize.errors import CheckpointError, PlanError
from pararealize.files import kind_of

ROWS = [{"j": 1, "cost": 2.5}, {"j": 2, "cost": 0.5}]
DOCUMENT = json.dumps({"n": 3, "rows": ROWS, "name": "x", "to": None}).encode()


def test_a_seed_gives_one_mutation_which_changes_something() -> None:
    changes = set()
    for seed in range(200):
        one = mutated_json(DOCUMENT, Random(seed))
        assert one == mutated_json(DOCUMENT, Random(seed))
        assert one.content != DOCUMENT
        assert mutated(DOCUMENT, Random(seed)).content != DOCUMENT
        changes.add(one.change)
    assert len(changes) > 150
    for word in ("is gone", "twice", "exchanged", "beside", "is that of", "bytes"):
        assert any(word in change for change in changes), word


@pytest.mark.parametrize("text", ['{"n": true}', '{"n": "1"}', '{"n": [1]}', '{"n": 2}', '{"n": 1, "m": 0}', "[1]"])
def test_what_was_read_is_compared_with_the_file(text: str) -> None:
    assert difference(text, '{"n": 1}')
    assert not difference('{"n": 1.0}', '{"n": 1, "default": 0}')


def _fail(error: Exception) -> str:
    raise error


class Unreadable(PlanError):
    """One that does not clean what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text


def _crash() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def _spin() -> str:
    while True:
        pass


ATTEMPTS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("right", lambda: ""),
    ("silent", lambda: "another shape"),
    ("typed", lambda: _fail(PlanError("n is 0; pass 1"))),
    ("raw", lambda: _fail(KeyError("n"))),
    ("raw", lambda: _fail(Unreadable("n is \x1b[31m"))),
    ("raw", lambda: _fail(Unreadable("n" * 100_000))),
    ("raw", _crash),
    ("hang", _spin),
    ("right", lambda: ""),
)


def test_every_outcome_is_seen_and_a_crash_ends_no_run() -> None:
    def make_from(start: int) -> Callable[[], object]:
        rest = iter(ATTEMPTS[start:])
        return lambda: lambda random, folder: Trial(change="a", attempt=next(rest)[1])

    seen = []
    while len(seen) < len(ATTEMPTS):
        start = len(seen)
        for _, outcome in outcomes("toy", make_from(start), range(start, len(ATTEMPTS)), Limits(processor=1)):
            seen.append(outcome.outcome)
            if outcome.text.startswith("the process ended"):
                break
    assert seen == [kind for kind, _ in ATTEMPTS]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> object:
        return lambda random, folder: Trial(change="a", attempt=lambda: "" if random.random() < 2 else "never")

    monkeypatch.setattr(command, "TARGETS", {"plans": make})
    lines = tmp_path / "lines.jsonl"
    command.main(["--kinds", "plans", "--examples", "2", "--lines", str(lines)])
    assert command.main(["--kinds", "plans", "--examples", "3", "--lines", str(lines), "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["cases"] == results["counts"]["plans"]["right"] == 3
    assert "| plans | 3 | 3 |" in (tmp_path / "table.md").read_text()
    assert [json.loads(line)["seed"] for line in lines.read_text().splitlines()] == [0, 1, 2]


def _tree(folder: Path) -> list[tuple[str, str, bytes]]:
    places = sorted(folder.rglob("*"))
    kinds = [str(kind_of(path)) for path in places]
    contents = [path.read_bytes() if kind == "file" else b"" for path, kind in zip(places, kinds, strict=True)]
    return list(zip([str(path.relative_to(folder)) for path in places], kinds, contents, strict=True))


def test_something_in_a_folder_is_changed(tmp_path: Path) -> None:
    words = set()
    for seed in range(60):
        for name, step in (("one", 1.0), ("two", 2.0)):
            folder = tmp_path / f"{seed}" / name
            folder.mkdir(parents=True)
            save_file({"a": torch.full((3,), step), "b": torch.zeros(2)}, folder / "x.safetensors")
            (folder / "y.json").write_text(f'{{"step": {step}, "rows": [1, 2]}}')
        folder = tmp_path / f"{seed}" / "one"
        before = _tree(folder)
        change = change_folder(folder, [tmp_path / f"{seed}" / "two"], Random(seed))
        assert _tree(folder) != before, change
        words.add(change.split()[-1])
    assert len(words) > 15


def test_changed_weights_are_refused_or_right(tmp_path: Path) -> None:
    target = Weights()
    for seed in range(20):
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        trial = target(Random(seed), folder)
        with contextlib.suppress(CheckpointError):
            assert trial.attempt() == "", trial.change
