"""The command: ``python -m benchmarks.kills``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Results, table

from .plot import draw
from .run import KINDS, case, strike

FOLDER = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds after which a wait means a hang")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and seconds.svg")
    parser.add_argument("--json", action="store_true", help="print the summary and all rows as JSON")
    parser.add_argument("--again", action="store_true", help="measure anew what has a row already")
    options = parser.parse_args(arguments)

    results = Results(options.out / "results.json")
    if options.again:
        results.rows.clear()
    for i in range(options.runs):
        name = f"{options.seed}-{i:03d}"
        if name in results.rows:
            continue
        row = case(i, options.seed)
        row |= {"timeout": options.timeout, **strike(**row, timeout=options.timeout)}
        row["stuck"] = None in row["ended"].values()
        row["right"] = set(row["named"].values()) == {row["rank"]}
        results.add(name, row)
        last = "stuck" if row["stuck"] else f"{max(row['ended'].values()):.3f} s"
        line = f"{row['kind']} rank {row['rank']} of {row['n']}: {last}, {'right' if row['right'] else row['errors']}"
        print(f"[{i + 1}/{options.runs}] {line}", file=sys.stderr, flush=True)
    summary = summarise(list(results.rows.values()))
    (options.out / "table.md").write_text(markdown(summary))
    draw(
        {
            kind: [slowest(row) for row in results.rows.values() if row["kind"] == kind and not row["stuck"]]
            for kind in KINDS
        },
        options.timeout,
        options.out / "seconds.svg",
    )
    print(json.dumps({"summary": summary, "rows": results.rows}, indent=1) if options.json else markdown(summary))
    return int(any(row["stuck"] or not row["right"] for row in results.rows.values()))


def slowest(row: dict[str, Any]) -> float:
    """Seconds until the last survivor had ended."""
    return max(row["ended"].values())


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Counts and seconds, by what befell the rank and for all."""
    groups = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    return {kind: _counts(group) for kind, group in {**groups, "all": rows}.items() if group}


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [slowest(row) for row in rows if not row["stuck"]]
    return {
        "runs": len(rows),
        "stuck": sum(row["stuck"] for row in rows),
        "right": sum(row["right"] for row in rows),
        "median": round(median(seconds), 3) if seconds else None,
        "longest": round(max(seconds), 3) if seconds else None,
    }


def markdown(summary: dict[str, dict[str, Any]]) -> str:
    head = ("", "runs", "stuck", "right culprit", "median s", "longest s")
    lines = [(kind, *row.values()) for kind, row in summary.items()]
    text = "Seconds from what befell one rank until the last of the others had ended, by `python -m benchmarks.kills`."
    return f"# Kills\n\n{text} See [README.md](README.md).\n\n{table(head, lines)}\n"


if __name__ == "__main__":
    sys.exit(main())
