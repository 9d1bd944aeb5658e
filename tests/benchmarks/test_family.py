"""The table of all four systems: what stands in it, and how far it says what was not measured."""

from __future__ import annotations

import pytest

from benchmarks.family import tables


def timed(seconds: float) -> dict:
    return {"step": {"median": seconds}, "memory": {"median": 2**20}}


ROWS = {
    "serial, seed 0": {"error": 0.02},
    "serial, seed 1": {"error": 0.04},
    "multigrid 8 2/1, seed 0": {"error": 0.05, "serial_error": 0.5},
    "times": {"one thread": timed(1.0), "GPipe 1": timed(1.1), "1F1B 2": timed(0.8), "multigrid 8 2/1": timed(0.9)},
    "simulated": {
        "steps": {
            "serial": {"1": 2.0},
            "pipeline": {"2": 1.0, "4": 0.5},
            "multigrid 8 2/1": {"2": 0.6, "4": 0.3},
        }
    },
}


def cells(name: str) -> list[str]:
    line = next(line for line in tables.markdown(ROWS).splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("serial, one thread", ["1000", "1.00", "1", "1.00", "3.0 ± 1.4", "–"]),
        ("pipeline", ["800", "1.25", "1", "2.50", "3.0 ± 1.4", "–"]),  # the best schedule; twice as fast on four ranks
        ("multigrid, 2/1", ["900", "1.11", "1", "2.22", "5.0", "50.0"]),
        ("parareal, linear", ["–", "–", "–", "–", "–; –", "–"]),
    ],
)
def test_a_line(name, expected):
    assert cells(name)[1:] == expected


def test_a_picture_of_some_rows(tmp_path):
    for rows in (ROWS, {}):
        tables.draw(rows, tmp_path / "family.svg")
        assert "<svg" in (tmp_path / "family.svg").read_text()
