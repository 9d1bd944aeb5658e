"""The command: ``python -m benchmarks.table2``. What was stopped goes on where it was; ``--again`` starts anew."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, run_cases, table

from .measure import KINDS, PAPER, PUBLISHED, SUMMED, case, measure, original, parts, recipe_of
from .plot import draw

FOLDER = Path(__file__).parent
NUMBERS = (3, 6, 12, 18, 24)
GOAL = {3: 2.9, 6: 5.7, 12: 11.0, 18: 16.0, 24: 21.0}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table2", description=__doc__)
    parser.add_argument("--model", default="resnet1001")
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, metavar="N", help="numbers of segments")
    parser.add_argument("--recipes", nargs="+", default=(PAPER, *KINDS), choices=(PAPER, *KINDS), metavar="RECIPE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each case")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and speedup.svg")
    parser.add_argument(
        "--quick", action="store_true", help="resnet110, batch 2, N = 3 and 6, one round, to try it out"
    )
    parser.add_argument("--again", action="store_true", help="forget the rows that are there")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.batch, options.numbers, options.rounds = "resnet110", 2, (3, 6), 1
        options.out = options.out if options.out != FOLDER else FOLDER / "quick"

    setting = {
        "model": options.model,
        "batch": options.batch,
        "repeats": options.rounds,
        "warmup": min(2, options.rounds),
    }
    path = options.out / "results.json"
    if options.again:
        path.unlink(missing_ok=True)
    results = Results(path)
    if others := {name for name, row in results.rows.items() if row.get("setting", setting) != setting}:
        parser.error(f"{path} has {len(others)} rows of another setting than {setting}; pass --again, or another --out")
    cases = [case(n, recipe) for n in options.numbers for recipe in options.recipes]
    run_cases(cases, functools.partial(_row, setting=setting), results, seconds=1800, gibibytes=24, show=_line)
    done = {name: row for name, row in results.rows.items() if "failed" not in row}
    (options.out / "table.md").write_text(markdown(done, setting))
    draw(curves(done), options.out / "speedup.svg", title=f"{options.model}, batch {options.batch}, one thread")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(done, setting))
    return 0 if len(done) == len(results.rows) else 1


def _row(name: str, *, setting: dict[str, Any]) -> dict[str, Any]:
    return measure(name, **setting) | {"setting": setting}


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['failed']}: {row['error']}"
    speedups = {way: f"{_speedup(row, step):.2f}×" for way, step in row["steps"].items()}
    return f"{', '.join(f'{way} {value}' for way, value in speedups.items())} in {row['seconds']:.0f} s"


def _speedup(row: dict[str, Any], step: tuple[float, float]) -> float:
    """Against the original of the same rounds."""
    return float(sum(row["original"]) / sum(step))


def curves(rows: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Speed-ups by N, for each line of the plot."""
    lines: dict[str, dict[int, float]] = {"published": {}, PAPER: {}}
    for name, row in rows.items():
        n, recipe = recipe_of(name)
        steps = row["steps"]
        if n in PUBLISHED:
            lines["published"][n] = PUBLISHED[n]["speedup"]
        way = {PAPER: "waiting", SUMMED: "reduced"}.get(recipe, "overlapped")
        lines.setdefault(recipe, {})[n] = _speedup(row, steps[way])
    return {name: curve for name, curve in lines.items() if curve}


def markdown(rows: dict[str, dict[str, Any]], setting: dict[str, Any]) -> str:
    speedups = curves(rows)
    numbers = sorted({row["n"] for row in rows.values()})
    first = [
        [n, *(f"{speedups[name][n]:.2f}" if n in speedups[name] else "" for name in speedups), GOAL.get(n, "")]
        for n in numbers
    ]
    whole = original(list(rows.values()))
    second = [(1, "original", "", "", "", "", _ms(whole), "1")]
    for row in rows.values():
        part, steps = parts(row), row["steps"]
        named = [_ms(part[name]) for name in ("stem", "slowest", "coarse", "head")]
        for way in ("waiting",) if row["recipe"] == PAPER else tuple(steps):
            label = PAPER if row["recipe"] == PAPER else f"{row['recipe']}, {way}"
            second.append((row["n"], label, *named, _ms(steps[way]), f"{_speedup(row, steps[way]):.2f}"))
    published = [
        (n, "published", *(_pair(p[name]) for name in ("stem", "slowest", "coarse", "head")), "", f"{p['speedup']:.2f}")
        for n, p in PUBLISHED.items()
    ]
    about = (
        f"{setting['model']}, 100 classes, 32×32 pixels, batch {setting['batch']}, one thread; medians of "
        f"{setting['repeats']} rounds after {setting['warmup']}; milliseconds forward / backward."
    )
    head = ("N", "recipe", "stem", "slowest segment", "coarse chain", "head", "step", "speed-up")
    return "\n\n".join(
        (
            "# One step with a device for each segment",
            "Written by `python -m benchmarks.table2`; see [README.md](README.md).",
            about,
            "Speed-ups over the original of the same rounds, forward and backward:",
            table(("N", *speedups, "goal"), first),
            "What a step consists of:",
            table(head, second),
            "Published (Lee, Lee and Park, table 2; batch 128, one Titan RTX):",
            table(head, published) + "\n",
        )
    )


def _ms(pair: tuple[float, float]) -> str:
    return f"{1e3 * pair[0]:.2f} / {1e3 * pair[1]:.2f}"


def _pair(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
