"""The benchmark of high-order stacking: its networks, its measurements, and what stands in its tables."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.high_order import measure, networks, tables
from pararealize import data


@pytest.fixture
def small(monkeypatch):
    """A handful of images and narrow networks."""
    whole = data.digits(16, 0, image_size=8)
    few = data.Dataset(
        name="few", classes=10, batch_size=16, seed=0,
        images=whole.images[:48], labels=whole.labels[:48],
        test_images=whole.test_images[:20], test_labels=whole.test_labels[:20],
    )  # fmt: skip
    monkeypatch.setattr(measure, "DATA", {"few": lambda seed: few})
    monkeypatch.setattr(measure, "WIDTH", 4)


def test_depths_are_those_of_the_papers_table_3():
    blocks = {key: [networks.SCHEMES[key].blocks(layers) for layers in networks.DEPTHS] for key in tables.TABLE_3}
    assert blocks == {
        "euler": [4, 8, 14, 28, 42],
        "midpoint": [4, 8, 14, 28, 42],
        "rk4": [4, 8, 12, 28, 40],
        "rk8": [0, 0, 14, 28, 42],
        "rk8-adaptive": [0, 0, 14, 28, 42],
    }


def test_schemes_begin_with_equal_weights():
    euler, rk4 = (
        networks.build(networks.SCHEMES[key], 10, width=4, classes=10, seed=1).state_dict() for key in ("euler", "rk4")
    )
    assert all(torch.equal(euler[name], rk4[name]) for name in euler)


def test_a_run_and_its_tables(small):
    cases = measure.cases(["few"], (10,), seeds=1, epochs=1, factors=(1, 2))
    wanted = [name for name, case in cases.items() if case.scheme in ("euler", "rk4", "euler-1/4")]
    rows = {name: measure.train(cases[name]) for name in wanted}
    assert len(rows) == 6
    assert all(0 <= row["accuracy"] <= 1 and row["checked"][-1][0] == 3 for row in rows.values())
    text = tables.markdown(cases, rows)
    assert "| Euler | " in text
    assert " / 91.72 |" in text
    assert "lr × 8" in text
    rows[wanted[0]] = {"failed": "killed", "error": "the process ended"}
    assert f"- {wanted[0]}: the process ended" in tables.markdown(cases, rows)


def test_speeds_are_multiples_of_eulers():
    cases = measure.cases(["few"], (58,), seeds=1, epochs=1, factors=(1,))
    when = {"euler": 40, "rk4": 10}
    rows = {
        name: {"accuracy": 0.9, "diverged": False, "checked": [[1, 0.1], [when.get(case.scheme, 99), 0.9]]}
        for name, case in cases.items()
    }
    assert "| RK4 | 10 | 4.00× | 4.43 | 10 | 4.00× | 3.92 |" in tables.markdown(cases, rows)


def test_a_run_that_diverges_says_so(small, monkeypatch):
    monkeypatch.setattr(measure, "LR", 1e30)
    (case, *_) = measure.cases(["few"], (10,), seeds=1, epochs=4).values()
    row = measure.train(case)
    assert row["diverged"]
    assert row["loss"] is None


def test_memory_of_the_schemes(small):
    row = measure.cost(30, rounds=1)["schemes"]
    assert row["rk8"]["maps"] > 2 * row["rk4"]["maps"] > 2 * row["rk4-last"]["maps"] >= 2 * row["euler"]["maps"]
    text = tables.markdown({}, {"cost": {"layers": 30, "schemes": row}})
    assert "| RK8 fixed |" in text
    assert "| 7× | 1.15–1.2× |" in text
