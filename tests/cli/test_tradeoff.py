"""``pararealize tradeoff``: a table, a folder, the plan within a tolerance, and refusals in one message."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

from pararealize import Plan, Tradeoff, models
from pararealize.tradeoffs import measured_plans
from tests.command import run


def test_front_and_chosen_plan(tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_model(models.resnet20(), str(tmp_path / "trained.safetensors"))
    words = ("tradeoff", "resnet20", "--weights", tmp_path / "trained.safetensors", "--image-size", 8, "--points", 1)
    result = run(*words, "--n", 2, "--tolerance", 10, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert set(printed["files"]) == {"tradeoff.json", "tradeoff.svg", "plan.json"}
    front = Tradeoff.from_json((tmp_path / "out" / "tradeoff.json").read_text())
    assert printed["tradeoff"] == json.loads(front.to_json())
    assert [row.n for row in front.rows] == [1, 2]
    plan = Plan.from_json((tmp_path / "out" / "plan.json").read_text())
    assert (plan, printed["chosen"]["n"]) == (front.within(10).plan, 2)
    refused = run(*words, "--n", "2,x")
    assert refused.exit_code == 2
    assert "--n '2,x' is no list of numbers" in refused.stderr
    kind = run(*words, "--n", 2, "--coarse", "paper")
    assert kind.exit_code == 2
    assert "has no correction in closed form" in kind.stderr


def test_windows_across_changes_of_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(models.resnet20(), str(tmp_path / "trained.safetensors"))
    words = ("tradeoff", "resnet20", "--weights", tmp_path / "trained.safetensors", "--image-size", 8, "--points", 1)
    tried: list[int] = []
    monkeypatch.setattr(measured_plans, "measure_windows_across", lambda *_, most, **__: tried.append(most) or [])
    for given in ((), ("--across", 3)):
        result = run(*words, "--n", 2, *given)
        assert result.exit_code == 0, result.output
    assert tried == [0, 3]
    refused = run(*words, "--across", -1)
    assert refused.exit_code == 2
    assert "--across" in refused.stderr
