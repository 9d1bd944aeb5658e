"""The command: ``python -m benchmarks.processes``.

Two processes of one thread each make every method once and time them in turn; medians are taken over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, median
from benchmarks.ranks import Measured, on_ranks

from .methods import METHODS, MULTIGRID
from .tables import draw, markdown
from .worker import measure

__all__ = ["main", "measured"]

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
    given = parser.parse_args(arguments)

    results = Results(given.out / "results.json")
    for network in given.networks:
        for batch in given.batches or NETWORKS[network]:
            asked = {
                "network": network,
                "batch": batch,
                "rounds": given.rounds,
                "methods": given.methods,
                "cores": os.cpu_count(),
            }
            results.add(f"{network}, batch {batch}", measured(asked))
    (given.out / "table.md").write_text(markdown(results))
    draw(results.rows, given.out / "speedup.svg")
    print(json.dumps(results.rows, indent=1) if given.json else markdown(results))
    return 0


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """Median, least and most of every method and quantity."""
    times: dict[str, dict[str, list[float]]] = {}
    for method, quantity, value in on_ranks(measure, RANKS, asked, lambda found: _shown(asked, found)):
        times.setdefault(method, {}).setdefault(quantity, []).append(value)
    return {method: _summary(held) for method, held in times.items()}


def _shown(asked: dict[str, Any], found: Measured) -> str:
    method, quantity, value = found
    told = f"{value / 2**20:.0f} MiB" if quantity == "memory" else f"{value * 1e3:.0f} ms"
    return f"{asked['network']}, batch {asked['batch']}: {method}, {quantity} {told}"


def _summary(found: dict[str, list[float]]) -> dict[str, Any]:
    return {
        quantity: {"median": round(median(s), 5), "range": [round(min(s), 5), round(max(s), 5)], "runs": len(s)}
        for quantity, s in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
