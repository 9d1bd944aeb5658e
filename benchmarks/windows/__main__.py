"""The command: ``python -m benchmarks.windows``. Each case runs in a process of its own, on one thread."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, run_cases, table

from . import text

FOLDER = Path(__file__).parent
# n, windows, layers that stay as they are in front, behind; where nothing is said, all layers take part
SCHEDULES = {
    "pairs, middle half": (2, 3, 3, 3),
    "pairs, all but the ends": (2, 5, 1, 1),
    "pairs, all": (2, 6, 0, 0),
    "2 windows of 2 × 3": (2, 2, 0, 0),
    "1 window of 2 × 6": (2, 1, 0, 0),
    "4 windows of 3 × 1": (3, 4, 0, 0),
    "3 windows of 4 × 1": (4, 3, 0, 0),
    "1 window of 4 × 3": (4, 1, 0, 0),
    "2 windows of 6 × 1": (6, 2, 0, 0),
}
# the first one is the published method: sums
KINDS = ("linear", "scale", "folded", "folded:32", "low-rank:32", "dense")
TRAINED = ("linear", "folded", "folded:32", "low-rank:32")
TRAINED_SCHEDULES = ("pairs, all", "4 windows of 3 × 1", "3 windows of 4 × 1", "2 windows of 6 × 1")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--trained", nargs="*", choices=KINDS, default=TRAINED, help="kinds to distil a little, too")
    parser.add_argument("--weights", type=Path, default=Path("out"), help="where the trained decoder is kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and table.md")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=tuple(SCHEDULES))
    options = parser.parse_args(arguments)
    results = Results(options.out / "results.json")
    cases = [
        f"decoder; {schedule}; {kind}{suffix}"
        for suffix, kinds in (("", options.kinds), ("; trained", options.trained))
        for schedule in SCHEDULES
        for kind in kinds
        if schedule in options.schedules and (not suffix or schedule in TRAINED_SCHEDULES)
    ]
    for held_out in (False, True):
        text.docstrings(held_out=held_out)  # read once, before the processes of the cases part

    def measure(case: str) -> dict[str, Any]:
        from .measure import measure  # torch must not run before the fork

        _, schedule, kind, *trained = case.split("; ")
        return measure(SCHEDULES[schedule], kind, train=bool(trained), weights=options.weights)

    run_cases(cases, measure, results, seconds=3000, gibibytes=12, show=_show)
    (options.out / "table.md").write_text(markdown(results.rows))
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results.rows))
    return 0


def _show(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['failed']}: {row['error']}"
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float))


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    return "\n\n".join(_sections(rows)) + "\n"


def _sections(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "# Windows of trained networks"
    yield "Written by `python -m benchmarks.windows`; see [README.md](README.md)."
    figures = {"closed form": "excess", "+ 92 steps of distillation": "excess_trained"}
    lines = []
    for case, row in rows.items():
        _, schedule, kind, *trained = case.split("; ")
        if "failed" in row or trained:
            continue
        row = row | rows.get(f"{case}; trained", {})
        numbers = [f"{100 * row[key]:+.1f}%" if key in row else "" for key in figures.values()]
        lines.append([schedule, str(row["n"]), f"`{kind}`", f"{row['speedup']:.2f}×", *numbers])
    yield "## decoder"
    yield table(["schedule", "n", "coarse", "speed-up", *figures], lines)


if __name__ == "__main__":
    sys.exit(main())
