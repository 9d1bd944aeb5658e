"""The command: ``python -m benchmarks.compile``.

Each conversion runs in a process of its own, the sizes in turn, again and again; medians are taken over the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Results, exponent, row_of_command, table

from .measure import STAGES, measure
from .networks import layers
from .plot import draw

FOLDER = Path(__file__).parent
SEGMENTS = 12
GOAL = 5.0  # seconds of one core for ResNet-1001
CHAINS = (100, 300, 1000, 3000, 10000)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=CHAINS, help="lengths of the chains")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and growth.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--one", metavar="NETWORK", help="measure this once, here, and print its row")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one, SEGMENTS)))
        return 0

    names = ["resnet1001", *(f"chain-{length}" for length in options.layers)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for i in range(options.rounds):
        for name in names:
            runs[name].append(row_of_command("benchmarks.compile", "--one", name))
            print(f"[{i + 1}/{options.rounds}] {name}: {runs[name][-1]['cpu']:.2f} s", file=sys.stderr, flush=True)
    results = Results(options.out / "results.json")
    results.rows = {name: _medians(rows) for name, rows in runs.items()}
    results.save()
    (options.out / "table.md").write_text(markdown(results))
    if chains := [name for name in names if name != "resnet1001"]:
        draw([layers(n) for n in chains], [results.rows[n] for n in chains], options.out / "growth.svg")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = {key: round(median(row[key] for row in rows), 3) for key in ("cpu", "wall", "peak_mib", "model_mib")}
    stages = {stage: round(median(row["stages"][stage] for row in rows), 4) for stage in rows[0]["stages"]}
    spread = [round(min(row["cpu"] for row in rows), 3), round(max(row["cpu"] for row in rows), 3)]
    return {
        **values,
        "cpu_range": spread,
        "stages": stages,
        "n": rows[0]["n"],
        "blocks": rows[0]["blocks"],
        "runs": len(rows),
    }


def slopes_of(rows: dict[str, dict[str, Any]], least: int = 0) -> dict[str, float]:
    """Exponents of growth over the chains of at least so many layers; none where there are too few for a fit."""
    chains = [name for name in rows if name != "resnet1001" and layers(name) >= least]
    if len(chains) < 2:
        return {}
    sizes = [layers(name) for name in chains]
    whole = {key: [rows[name][key] for name in chains] for key in ("cpu", "peak_mib")}
    stages = {stage: [rows[name]["stages"][stage] for name in chains] for stage in STAGES}
    return {key: exponent(sizes, [max(v, 1e-4) for v in values]) for key, values in (whole | stages).items()}


def markdown(results: Results) -> str:
    head = ("network", "layers", "blocks", "CPU s", "wall s", *STAGES, "rest", "peak MiB", "model MiB")
    lines = [
        (
            name, layers(name), row["blocks"], f"{row['cpu']:.2f}", f"{row['wall']:.2f}",
            *(f"{row['stages'][stage]:.2f}" for stage in (*STAGES, "rest")),
            f"{row['peak_mib']:.0f}", f"{row['model_mib']:.1f}",
        )
        for name, row in results.rows.items()
    ]  # fmt: skip
    return "\n\n".join(
        (
            "# Compilation: time and memory",
            "Written by `python -m benchmarks.compile`; see [README.md](README.md). Seconds are of processor time.",
            table(head, lines),
            *(_growth(slopes_of(results.rows, least), least) for least in (0, 1000)),
            f"ResNet-1001: {results.rows['resnet1001']['cpu']:.2f} s of one core; the goal is under {GOAL:g} s.\n",
        )
    )


def _growth(slopes: dict[str, float], least: int) -> str:
    words = {"cpu": "time", "peak_mib": "memory"}
    listed = ", ".join(f"{words.get(key, key)} {value:.2f}" for key, value in slopes.items())
    over = f"chains of at least {least:,} layers" if least else "all chains"
    return f"Exponents of growth over {over} (1 is linear): {listed or 'too few sizes for a fit'}."


if __name__ == "__main__":
    sys.exit(main())
