"""The command: ``python -m benchmarks.family``.

Times and memory of two real ranks, errors after equal epochs, and simulated steps of more ranks, in one table. Rows
that ``results.json`` has already are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.harness import Results, run_cases
from benchmarks.processes.__main__ import medians

from .tables import draw, markdown

FOLDER = Path(__file__).parent
METHODS = (
    "one thread",
    "all threads",
    *(f"GPipe {m}" for m in (1, 2, 4, 8)),
    *(f"1F1B {m}" for m in (2, 4, 8)),
    "parareal linear",
    "parareal bottleneck",
    "multigrid 8 1/1",
    "multigrid 8 2/1",
)
BATCH = 32


def main(arguments: list[str] | None = None) -> int:
    from .accuracy import EPOCHS, WAYS  # after the fork of the harness torch may run

    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS, help="whose errors are measured")
    parser.add_argument("--no-times", action="store_true", help="errors only")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and family.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)

    results = Results(options.out / "results.json")
    cases = [f"{way}, seed {seed}" for seed in range(options.seeds) for way in options.ways]
    run_cases(
        cases,
        lambda case: _error(case, options.epochs),
        results,
        seconds=3600,
        gibibytes=8,
        show=lambda row: str(row)[:100],
    )
    if not options.no_times and "simulated" not in results.rows:
        run_cases(
            ["simulated"], lambda _: _simulated(), results, seconds=3600, gibibytes=8, show=lambda row: str(row)[:100]
        )
    if not options.no_times and "times" not in results.rows:
        case = {"network": "chain64", "batch": BATCH, "rounds": options.rounds, "methods": list(METHODS)}
        results.add("times", medians({**case, "cores": os.cpu_count()}))
    (options.out / "table.md").write_text(markdown(results.rows))
    draw(results.rows, options.out / "family.svg")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results.rows))
    return 1 if any("failed" in row for row in results.rows.values()) else 0


def _error(case: str, epochs: int) -> dict[str, object]:
    from .accuracy import measure

    way, _, seed = case.rpartition(", seed ")
    return measure(way, int(seed), epochs)


def _simulated() -> dict[str, object]:
    from .simulated import steps

    return steps(BATCH)


if __name__ == "__main__":
    sys.exit(main())
