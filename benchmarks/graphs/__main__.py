"""The command: ``python -m benchmarks.graphs``.

Each batch size and number of segments runs in a process of its own, in which all ways take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.harness import Results, row_of_command

from .measure import measure
from .tables import draw, markdown

FOLDER = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graphs", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=(16, 32, 64, 128))
    parser.add_argument("--segments", type=int, nargs="+", default=(3, 6, 12))
    parser.add_argument("--coarse", default="linear", help="kind of coarse block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and ratios.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # segments, 0 for the original; one process's part
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error(f"this measures a GPU, and torch {torch.__version__} finds none here; run it where there is one")
    if options.one is not None:
        (batch,) = options.batch
        row = measure(batch, options.one or None, coarse=options.coarse, rounds=options.rounds, steps=options.steps)
        print(json.dumps(row))
        return 0

    settings = ("--coarse", options.coarse, "--rounds", str(options.rounds), "--steps", str(options.steps))
    results = Results(options.out / "results.json")
    for batch in options.batch:
        for n in (0, *options.segments):
            row = row_of_command("benchmarks.graphs", "--batch", str(batch), "--one", str(n), *settings)
            results.add(f"batch {batch}, n {n or '–'}", row)
            times = {way: cell.get("ms", cell.get("error")) for way, cell in row["ways"].items()}
            print(f"batch {batch}, n {n or '–'}: {times}", file=sys.stderr, flush=True)
    (options.out / "table.md").write_text(markdown(results))
    draw(results, options.out / "ratios.svg")
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
