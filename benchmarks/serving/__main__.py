"""The command: ``python -m benchmarks.serving``.

Two processes of one thread each. On the first, every way to answer a request takes its turn, round after round.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from benchmarks.harness import Results, table
from benchmarks.ranks import Measurement, on_ranks

from .worker import RANKS, WAYS, answer

__all__ = ["main"]

FOLDER = Path(__file__).parent
CASES = {"resnet110": (1, 8), "resnet1001": (1,), "vit24": (1,)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and table.md")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    results = Results(options.out / "results.json")
    for network in options.networks:
        for batch in CASES[network]:
            case = {"network": network, "batch": batch, "rounds": options.rounds}
            times: dict[str, list[float]] = {}
            for way, _, seconds in on_ranks(answer, RANKS, case, _line):
                times.setdefault(way, []).append(seconds)
            row = {way: {"median": round(median(s), 6), "least": round(min(s), 6)} for way, s in times.items()}
            results.add(f"{network}, batch {batch}", row | {"rounds": options.rounds})
    (options.out / "table.md").write_text(markdown(results))
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def _line(measurement: Measurement) -> str:
    return f"{measurement[0]}: {measurement[2] * 1e3:.1f} ms"


def markdown(results: Results) -> str:
    """A row a case: median milliseconds of each way, and how many times faster two ranks are."""
    head = ["", *(f"{words}, ms" for words in WAYS.values()), "called", "over HTTP"]
    rows = []
    for name, row in results.rows.items():
        ms = {way: row[way]["median"] * 1e3 for way in WAYS}
        ratios = [ms[f"original{how}"] / ms[f"ranks{how}"] for how in ("", " over HTTP")]
        rows.append([name, *(f"{value:.1f}" for value in ms.values()), *(f"{ratio:.2f}×" for ratio in ratios)])
    return f"# Serving on two ranks\n\n{table(head, rows)}\n"


if __name__ == "__main__":
    sys.exit(main())
