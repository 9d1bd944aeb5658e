"""The command: ``python -m benchmarks.high_order``.

Rows that ``results.json`` has already are kept, so a run that was stopped goes on; ``table.md`` is written anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, run_cases

from .measure import DATA, EPOCHS, FACTORS, SEEDS, cases, cost, train
from .networks import DEPTHS, SCHEMES
from .tables import markdown

FOLDER = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.high_order", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--layers", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--schemes", nargs="+", choices=list(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS, help="multiples of the learning rate")
    parser.add_argument("--quick", action="store_true", help="the digits, 30 layers, one seed, one epoch; not kept")
    parser.add_argument("--out", type=Path, help="folder of results.json and table.md; this one when left out")
    parser.add_argument("--seconds", type=float, default=3600, help="limit for one run")
    parser.add_argument("--gibibytes", type=float, default=8, help="memory limit for one run")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    if options.quick:
        options.data, options.layers, options.seeds, options.epochs, options.factors = ["digits"], (30,), 1, 1, (1,)
    folder = options.out or (Path(tempfile.mkdtemp(prefix="high_order.")) if options.quick else FOLDER)

    runs = cases(options.data, options.layers, options.seeds, options.epochs, options.factors)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "cost": cost,
        **{name: lambda case=case: train(case) for name, case in runs.items()},  # type: ignore[misc]
    }
    results = Results(folder / "results.json")
    run_cases(
        [name for name in measures if name not in runs or runs[name].scheme in options.schemes],
        lambda name: measures[name](),
        results,
        seconds=options.seconds,
        gibibytes=options.gibibytes,
        show=show,
    )
    (folder / "table.md").write_text(markdown(runs, results.rows))
    print(json.dumps(results.rows, indent=1) if options.json else (folder / "table.md").read_text())
    return 1 if any("failed" in row for row in results.rows.values()) else 0


def show(row: dict[str, Any]) -> str:
    """A row in one line of progress."""
    if "failed" in row:
        return f"{row['failed']}: {row['error'][:300]}"
    if "schemes" in row:
        return ", ".join(f"{key} {cost['maps']:.1f} maps" for key, cost in row["schemes"].items())
    return f"{'diverged' if row['diverged'] else format(row['accuracy'], '.3f')}, {row['seconds']} s"


if __name__ == "__main__":
    sys.exit(main())
