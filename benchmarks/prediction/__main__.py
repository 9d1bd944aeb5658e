"""``python -m benchmarks.prediction``: predictions beside published figures, and beside steps measured here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Results, isolated, table
from benchmarks.ranks import Measurement, on_ranks

HERE = Path(__file__).parent
PUBLISHED = ("paper_rows", "gpipe_rows", "pairs_rows")
BATCHES = (1, 4, 16, 64)
CASES = [(network, batch) for network in ("resnet56", "perceptron", "transformer", "convolutions") for batch in BATCHES]
NAMES = {
    "one": "one process", "copies": "DDP", "pipeline": "GPipe", "parareal": "parareal", "windows": "4 windows",
}  # fmt: skip
WAYS = tuple(NAMES)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--quick", action="store_true", help="one measured case, and no published run")
    parser.add_argument("--unbound", action="store_true", help="let the system move ranks between cores")
    parser.add_argument("--json", action="store_true", help="print the rows")
    options = parser.parse_args(arguments)
    results = Results(options.out / "results.json")
    if not options.quick:
        for name in PUBLISHED:
            if name not in results.rows:
                print(f"predicting {name}", file=sys.stderr, flush=True)
                results.add(name, isolated(lambda name=name: _published(name), seconds=900, gibibytes=24))
    from .measured import measure

    for network, batch in CASES[5:6] if options.quick else CASES:
        case = f"{network}, batch {batch}"
        if case not in results.rows:
            print(f"measuring {case}", file=sys.stderr, flush=True)
            results.add(
                case,
                _row(list(on_ranks(measure, 2, {"network": network, "batch": batch}, _line, bind=not options.unbound))),
            )
    (options.out / "table.md").write_text(markdown(results.rows) + "\n", encoding="utf-8")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results.rows))
    return 0


def _published(name: str) -> dict[str, Any]:
    from . import published

    return {"rows": getattr(published, name)()}


def _line(measurement: Measurement) -> str:
    return f"{measurement[0]} {measurement[1]}: {measurement[2]:.4g} s"


def _row(measurements: list[Measurement]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for way, quantity, seconds in measurements:
        row.setdefault(way, {})[quantity] = seconds
    return row


def judged(rows: dict[str, Any]) -> dict[str, float]:
    """The median error of seconds, and of how many cases the predicted winner won."""
    cases = [row for row in rows.values() if "one" in row]
    off = [abs(row[way]["predicted"] / row[way]["measured"] - 1) for row in cases for way in WAYS if way in row]
    right = [min(row, key=lambda way: _of(row, way, "predicted")) == min(row, key=lambda way: _of(row, way, "measured"))
             for row in cases]  # fmt: skip
    return {"median_error": median(off) if off else 0.0, "winners": sum(right), "cases": len(cases)}


def _of(row: dict[str, Any], way: str, quantity: str) -> float:
    return row[way][quantity] if way in WAYS else float("inf")


def markdown(rows: dict[str, Any]) -> str:
    parts = [
        "# Predictions beside figures",
        "Written by `python -m benchmarks.prediction`; see [README.md](README.md).",
    ]
    published = [one for name in PUBLISHED for one in rows.get(name, {}).get("rows", [])]
    if published:
        lines = [
            (
                one["run"],
                f"{one['predicted']:.2f}" if "predicted" in one else "",
                f"{one['published']:.2f}" if "published" in one else "",
                f"{1e3 * one['seconds']:.0f}" if "seconds" in one else "",
                f"{1e3 * one['published_seconds']:.0f}" if one.get("published_seconds") else "",
            )
            for one in published
        ]
        parts += ["Published runs, predicted from datasheets:"]
        parts += [table(("run", "speed-up predicted", "published", "ms predicted", "published"), lines)]
    cases = {name: row for name, row in rows.items() if "one" in row}
    if cases:
        score = judged(rows)
        lines = [(name, *(_cell(row, way) for way in WAYS)) for name, row in cases.items()]
        parts += ["Measured here, two gloo ranks of one thread, ms predicted from measured blocks / median measured:"]
        parts += [table(("case", *NAMES.values()), lines)]
        words = (
            f"Median error of seconds {score['median_error']:.0%}; the predicted winner won in {score['winners']} of "
        )
        parts.append(words + f"{score['cases']} cases.")
    return "\n\n".join(parts)


def _cell(row: dict[str, Any], way: str) -> str:
    return f"{1e3 * row[way]['predicted']:.1f} / {1e3 * row[way]['measured']:.1f}" if way in row else ""


if __name__ == "__main__":
    sys.exit(main())
