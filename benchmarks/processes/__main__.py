"""The command: ``python -m benchmarks.processes``.

Two processes of one thread each make every method once and time them in turn; medians are taken over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Results
from benchmarks.ranks import Case, Measurement, on_ranks

from .methods import METHODS, MULTIGRID
from .tables import draw, markdown
from .worker import measure

__all__ = ["main", "medians"]

FOLDER = Path(__file__).parent
RANKS = 2
NETWORKS = {"resnet1001": (1, 8, 32), "resnet110": (1, 8, 64), "vit24": (1, 8, 32), "chain64": (32,)}
USUAL = [name for name in METHODS if name not in MULTIGRID]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, help="instead of each network's own")
    parser.add_argument("--methods", nargs="+", default=USUAL, choices=METHODS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and speedup.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)

    results = Results(options.out / "results.json")
    for network in options.networks:
        for batch in options.batches or NETWORKS[network]:
            case = {
                "network": network,
                "batch": batch,
                "rounds": options.rounds,
                "methods": options.methods,
                "cores": os.cpu_count(),
            }
            results.add(f"{network}, batch {batch}", medians(case))
    (options.out / "table.md").write_text(markdown(results))
    draw(results.rows, options.out / "speedup.svg")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def medians(case: Case) -> dict[str, Any]:
    """Median, least and most of every method and quantity."""
    times: dict[str, dict[str, list[float]]] = {}
    for method, quantity, value in on_ranks(measure, RANKS, case, lambda measurement: _line(case, measurement)):
        times.setdefault(method, {}).setdefault(quantity, []).append(value)
    return {method: _summary(quantities) for method, quantities in times.items()}


def _line(case: Case, measurement: Measurement) -> str:
    method, quantity, value = measurement
    number = f"{value / 2**20:.0f} MiB" if quantity == "memory" else f"{value * 1e3:.0f} ms"
    return f"{case['network']}, batch {case['batch']}: {method}, {quantity} {number}"


def _summary(quantities: dict[str, list[float]]) -> dict[str, Any]:
    return {
        quantity: {"median": round(median(s), 5), "range": [round(min(s), 5), round(max(s), 5)], "runs": len(s)}
        for quantity, s in quantities.items()
    }


if __name__ == "__main__":
    sys.exit(main())
