"""The command: ``python -m benchmarks.multigrid``.

Two processes of one thread make every way once and time them in turn; medians are taken over the rounds. Then steps on
more ranks are simulated from measured times of single layers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Results
from benchmarks.ranks import Case, on_ranks

from .simulated import draw, simulated
from .tables import markdown
from .worker import SERIAL, WAYS, measure

FOLDER = Path(__file__).parent
RANKS = 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multigrid", description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=[64, 128], help="N, the number of layers")
    parser.add_argument("--ways", nargs="+", default=[*SERIAL, *WAYS], choices=[*SERIAL, *WAYS])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and simulated.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)

    results = Results(options.out / "results.json")
    for steps in options.steps:
        case = {"steps": steps, "rounds": options.rounds, "ways": options.ways}
        results.add(f"N = {steps}", _row(case))
    results.add("simulated", simulated(options.steps))
    draw(results.rows["simulated"], options.out / "simulated.svg")
    (options.out / "table.md").write_text(markdown(results))
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def _row(case: Case) -> dict[str, Any]:
    """Times of every way, and how far its gradient is from the exact one."""
    rows: dict[str, dict[str, Any]] = {}
    times: dict[tuple[str, str], list[float]] = {}
    line = f"N = {case['steps']}: {{0[0]}} {{0[1]}} {{0[2]:.4g}}".format
    for way, quantity, value in on_ranks(measure, RANKS, case, line):
        if quantity in ("step", "processor"):
            times.setdefault((way, quantity), []).append(value)
        else:
            rows.setdefault(way, {})[quantity] = value
    for (way, quantity), values in times.items():
        summary = {"median": median(values), "least": min(values), "most": max(values)}
        rows.setdefault(way, {})[quantity] = {**{k: round(v, 5) for k, v in summary.items()}, "runs": len(values)}
    return rows


if __name__ == "__main__":
    sys.exit(main())
