"""The fuzzer: programs are the same for ever and run alone, and its oracle sees what a wrong conversion would do."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.fuzz import oracle
from benchmarks.fuzz.__main__ import main
from benchmarks.fuzz.effects import EFFECTS
from benchmarks.fuzz.programs import program
from pararealize.errors import CaptureError


def scope(source: str) -> SimpleNamespace:
    names: dict[str, Any] = {"__name__": "fuzz"}
    exec(compile(source, "<fuzz>", "exec"), names)
    return SimpleNamespace(**names)


def without(effects: tuple[str, ...]) -> SimpleNamespace:
    """The first program with these effects alone and one tensor as its input."""
    examples = map(program, range(10_000))
    return scope(next(e.source for e in examples if e.effects == effects and "def forward(self, x):" in e.source))


def test_a_seed_gives_one_program() -> None:
    assert program(4711) == program(4711)
    assert program(4711).source != program(4712).source


@pytest.mark.filterwarnings("ignore")
def test_every_effect_comes_up_and_its_program_runs() -> None:
    """Fragments that do not fit would make examples of the original's errors, which prove nothing."""
    seen: dict[str, str] = {}
    for seed in range(3000):
        example = program(seed)
        for effect in example.effects:
            if effect not in seen:
                try:
                    oracle._original(scope(example.source))
                except oracle.OriginalError:
                    continue
                seen[effect] = example.source
        if len(seen) == len(EFFECTS):
            break
    assert {effect.name for effect in EFFECTS} == set(seen)


class Wrapped(nn.Module):
    """Stands for a conversion: the network itself, with a fault."""

    def __init__(self, model: nn.Module, fault: str) -> None:
        super().__init__()
        self.__dict__.update(model=copy.deepcopy(model), fault=fault, calls=0)
        self._modules.update(self.model._modules)
        self.__dict__["plan"] = SimpleNamespace(n=1)

    def forward(self, x: torch.Tensor) -> Any:
        self.__dict__["calls"] += 1
        if self.fault == "raises":
            raise KeyError("something of torch's")
        if self.fault == "size" and x.shape[0] not in (2, 3):
            x = x * 1.01
        if self.fault == "second call" and self.calls == 2:
            x = x * 1.01
        if self.fault == "mode" and not self.training:
            x = x * 1.01
        if self.fault == "gradient of inputs":
            x = x.detach()
        if self.fault == "gradient of parameters":
            with torch.no_grad():
                return self.model(x)
        return self.model(x)


@pytest.mark.parametrize("fault", ["size", "second call", "mode", "gradient of inputs", "gradient of parameters"])
def test_a_wrong_conversion_is_wrong(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    example = without(("item assigned",))
    example.STEPS = [
        {"training": training, "batch": batch, "size": 5, "mode": "gradients"}
        for training in (True, False)
        for batch in (2, 5)
    ]
    monkeypatch.setattr(oracle, "pararealize", lambda model, n, **_: Wrapped(model, fault))
    outcome = oracle.judge(example)
    assert (outcome.kind, outcome.stage) == ("wrong", "one segment"), outcome


def test_other_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    example = without(("item assigned",))
    monkeypatch.setattr(oracle, "pararealize", lambda model, n, **_: Wrapped(model, "raises"))
    assert oracle.judge(example).kind == "crash"

    def refuse(*_args: Any, **_keywords: Any) -> None:
        raise CaptureError("no")

    monkeypatch.setattr(oracle, "pararealize", refuse)
    assert oracle.judge(example) == oracle.Outcome(kind="refused", stage="one segment", text="CaptureError: no")

    def change(model: nn.Module, *_args: Any, **_keywords: Any) -> Wrapped:
        next(model.parameters()).data.add_(1)
        return Wrapped(model, "")

    monkeypatch.setattr(oracle, "pararealize", change)
    assert "the user's model was changed" in oracle.judge(example).text


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "lines.jsonl"
    main(["--examples", "2", "--lines", str(lines)])
    main(["--examples", "3", "--lines", str(lines), "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["examples"] == sum(results["counts"].values()) == sum(results["commits"].values()) == 3
    assert "| right |" in (tmp_path / "table.md").read_text()
    assert [json.loads(line)["seed"] for line in lines.read_text().splitlines()] == [0, 1, 2]
    capsys.readouterr()
    assert main(["--seed", "4711"]) == 0
    assert capsys.readouterr().out.startswith("# Effects: ")


def test_counts_of_other_examples_are_added_and_no_example_counts_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [str(tmp_path / name) for name in ("first.jsonl", "second.jsonl", "both.jsonl")]
    results = tmp_path / "results.json"
    main(["--examples", "3", "--lines", lines[2], "--out", str(tmp_path)])
    whole = json.loads(results.read_text())
    main(["--examples", "2", "--lines", lines[0], "--out", str(tmp_path)])
    rest = ["--lines", lines[1], "--add", str(results), "--out", str(tmp_path)]
    main(["--first", "2", "--examples", "1", *rest])
    assert json.loads(results.read_text()) == whole
    assert whole["seeds"] == [[0, 3]]
    with pytest.raises(SystemExit):
        main(["--first", "1", "--examples", "9", *rest])
    assert "has 2 of these examples already, the first is 1" in capsys.readouterr().err
    assert json.loads(results.read_text()) == whole
