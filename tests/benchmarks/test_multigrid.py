"""The experiment of layer-parallel steps: ratios beside another program's, one small run, simulated steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.multigrid import tables
from benchmarks.multigrid.simulated import RANKS, draw, simulated

ROOT = Path(__file__).resolve().parents[2]


def taking(seconds, **more):
    return {"step": {"median": seconds, "least": seconds / 2, "most": seconds, "runs": 3}, **more}


def test_ratios_and_goals(tmp_path):
    row = {
        "one thread": taking(0.2),
        "c8 1/1": taking(0.12, **{"gradient error": 0.4}),
        "c4 1/1": taking(0.1, **{"gradient error": 0.2}),
    }
    assert tables.ratio(row, "c8 1/1") == pytest.approx(0.6)
    assert tables.goal(64, "c8 1/1") == pytest.approx(0.8 * 169 / 215)
    assert tables.goal(64, "c4 1/1") is None
    results = harness.Results(tmp_path / "results.json")
    results.rows = {"N = 64": row}
    shown = tables.markdown(results)
    assert "| N = 64 | c8 1/1 | 0.600 | 0.600 | 0.786 | 0.629 | yes | 0.4 |" in shown
    assert "| N = 64 | c4 1/1 | 0.500 | 0.500 | – | – | – | 0.2 |" in shown


def test_simulated_steps(tmp_path):
    found = simulated([16])
    rows = {row["way"]: row["in terms of serial"] for row in found["rows"]}
    assert all(len(row) == len(RANKS) for row in rows.values())
    assert all(row[0] > 1 and row[-1] <= row[0] for row in rows.values())
    assert rows["c8 1/1"][1] < rows["c4 2/1"][1]
    assert "<svg" in draw(found, tmp_path / "simulated.svg").read_text()


def test_two_ranks(tmp_path):
    words = ["--steps", "8", "--rounds", "1", "--ways", "one thread", "c8 1/1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.multigrid", *words]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert run.returncode == 0, run.stderr
    row = json.loads((tmp_path / "results.json").read_text())["rows"]["N = 8"]
    assert row["c8 1/1"]["gradient error"] < 1e-5  # one interval: one iteration is exact
    assert "| N = 8 | c8 1/1 |" in (tmp_path / "table.md").read_text()
