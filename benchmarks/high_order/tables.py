"""Rows -> Markdown, with the paper's numbers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean, median
from typing import Any

from benchmarks.harness import table

from .measure import FACTORS, Case
from .networks import SCHEMES

TABLE_3 = {  # CIFAR-10, accuracy in per cent, by layers; RK4 has 26 and 82 layers in the third and fifth column
    "euler": {10: 91.72, 18: 92.68, 30: 93.02, 58: 92.81, 86: 92.73},
    "midpoint": {10: 91.97, 18: 92.95, 30: 93.17, 58: 94.08, 86: 93.87},
    "rk4": {10: 91.51, 18: 92.98, 30: 93.41, 58: 94.79, 86: 94.83},
    "rk8": {30: 93.39, 58: 94.91, 86: 95.02},
    "rk8-adaptive": {30: 94.17, 58: 95.06, 86: 95.15},
}
TABLE_4 = {  # how many times sooner than Euler, 58 layers, CIFAR-10
    "euler": ("1", "1"),
    "midpoint": ("2.27", "2.28"),
    "rk4": ("4.43", "3.92"),
    "rk8": ("3.31", "3.53"),
    "rk8-adaptive": ("3.84", "3.03"),
}
TABLE_2 = {
    "euler": ("1", "1"),
    "midpoint": ("1", "1"),
    "rk4": ("1.5", "1"),
    "rk4-last": ("1", "1"),
    "rk8": ("7", "1.15–1.2"),
}
GOALS = (0.8, 0.85)

Rows = Mapping[str, Mapping[str, Any]]


def markdown(cases: Mapping[str, Case], rows: Rows) -> str:
    """All tables that there are rows for."""
    done = {name: case for name, case in cases.items() if name in rows and "accuracy" in rows[name]}
    parts = ["# High-order stacking", "Written by `python -m benchmarks.high_order`; see [README.md](README.md)."]
    for data in dict.fromkeys(case.data for case in done.values()):
        ours = {name: case for name, case in done.items() if case.data == data}
        parts += [f"## Accuracy, {data}, and table 3", _accuracies(ours, rows)]
        parts += [f"## Speed of convergence, {data}, and table 4", _speeds(ours, rows)]
        parts += [f"## Learning rates, {data}", _rates(ours, rows)]
    if "cost" in rows and "schemes" in rows["cost"]:
        parts += [f"## Memory and time, {rows['cost']['layers']} layers, and table 2", _costs(rows["cost"]["schemes"])]
    failed = [f"- {name}: {row['error']}" for name, row in rows.items() if "failed" in row]
    if failed:
        parts += ["## Failed", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _runs(cases: Mapping[str, Case], rows: Rows, **fields: Any) -> list[Mapping[str, Any]]:
    return [
        rows[name] for name, case in cases.items() if all(getattr(case, key) == value for key, value in fields.items())
    ]


def _accuracies(cases: Mapping[str, Case], rows: Rows) -> str:
    """Mean and range over the seeds, in per cent; the paper's CIFAR-10 number behind the stroke."""
    depths = sorted({case.layers for case in cases.values()})
    lines = []
    for key, scheme in SCHEMES.items():
        cells = []
        for layers in depths:
            accuracies = [100 * run["accuracy"] for run in _runs(cases, rows, scheme=key, layers=layers, factor=1)]
            paper = TABLE_3.get(key, {}).get(layers)
            mine = f"{mean(accuracies):.1f} ({min(accuracies):.1f}–{max(accuracies):.1f})" if accuracies else "–"
            cells.append(f"{mine} / {paper if paper is not None else '–'}" if accuracies or paper else "")
        lines.append((scheme.name, *cells))
    return table(("ours / paper's, %", *(f"{layers} layers" for layers in depths)), lines)


def _speeds(cases: Mapping[str, Case], rows: Rows) -> str:
    """Steps until the test accuracy is reached, medians over the seeds, and how many times sooner than Euler."""
    layers = 58 if any(case.layers == 58 for case in cases.values()) else max(c.layers for c in cases.values())
    reached = {
        key: [
            [_first(run["checked"], goal) for run in _runs(cases, rows, scheme=key, layers=layers, factor=1)]
            for goal in GOALS
        ]
        for key in SCHEMES
    }
    lines = []
    for key, scheme in SCHEMES.items():
        if not reached[key][0]:
            continue
        cells: list[str] = []
        for i in range(len(GOALS)):
            mine, euler = _median(reached[key][i]), _median(reached["euler"][i])
            times = f"{euler / mine:.2f}×" if mine and euler else "–"
            cells += [f"{mine:g}" if mine else "never", times, TABLE_4.get(key, ("–", "–"))[i]]
        lines.append((scheme.name, *cells))
    head = [words for goal in GOALS for words in (f"steps to {goal:g}", "sooner", "paper's")]
    return f"{layers} layers.\n\n" + table(("", *head), lines)


def _first(checked: list[list[float]], goal: float) -> float | None:
    return next((step for step, accuracy in checked if accuracy >= goal), None)


def _median(values: list[float | None]) -> float | None:
    """The median, where a run that never got there counts as the slowest of all."""
    if not values:
        return None
    middle = median(float("inf") if value is None else value for value in values)
    return None if middle == float("inf") else middle


def _rates(cases: Mapping[str, Case], rows: Rows) -> str:
    layers = max(case.layers for case in cases.values())
    lines = []
    for key, scheme in SCHEMES.items():
        runs = [_runs(cases, rows, scheme=key, layers=layers, factor=factor, seed=0) for factor in FACTORS]
        if any(runs):
            lines.append((scheme.name, *map(_outcome, runs)))
    heading = f"{layers} layers, one seed, test accuracy in per cent at multiples of the learning rate."
    return f"{heading}\n\n" + table(("", *(f"lr × {factor}" for factor in FACTORS)), lines)


def _outcome(runs: list[Mapping[str, Any]]) -> str:
    if not runs:
        return "–"
    return "diverged" if runs[0]["diverged"] else f"{100 * runs[0]['accuracy']:.1f}"


def _costs(schemes: Mapping[str, Mapping[str, float]]) -> str:
    return table(
        ("", "maps held, inference", "training memory", "training time", "paper's memory", "paper's time"),
        _cost_lines(schemes),
    )


def _cost_lines(schemes: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    euler = schemes["euler"]
    for key, row in schemes.items():
        yield (
            SCHEMES[key].name,
            f"{row['maps']:.1f}",
            f"{row['training_bytes'] / euler['training_bytes']:.2f}×",
            f"{row['seconds'] / euler['seconds']:.2f}×",
            *(f"{value}×" if value != "–" else value for value in TABLE_2.get(key, ("–", "–"))),
        )
