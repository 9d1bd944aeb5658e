"""The command: ``python -m benchmarks.graphs``.

Each batch size and number of segments runs in a process of its own, in which all ways take turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Results

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
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error(f"this measures a GPU, and torch {torch.__version__} finds none here; run it where there is one")
    if given.one is not None:
        (batch,) = given.batch
        row = measure(batch, given.one or None, coarse=given.coarse, rounds=given.rounds, steps=given.steps)
        print(json.dumps(row))
        return 0

    results = Results(given.out / "results.json")
    for batch in given.batch:
        for n in (0, *given.segments):
            row = _in_its_own_process(given, batch, n)
            results.add(f"batch {batch}, n {n or '–'}", row)
            shown = {way: found.get("ms", found.get("error")) for way, found in row["ways"].items()}
            print(f"batch {batch}, n {n or '–'}: {shown}", file=sys.stderr, flush=True)
    (given.out / "table.md").write_text(markdown(results))
    draw(results, given.out / "ratios.svg")
    print(json.dumps(results.rows, indent=1) if given.json else markdown(results))
    return 0


def _in_its_own_process(given: argparse.Namespace, batch: int, n: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.graphs", "--batch", str(batch), "--one", str(n)]
    command += ["--coarse", given.coarse, "--rounds", str(given.rounds), "--steps", str(given.steps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1], check=False)
    if done.returncode:
        raise SystemExit(f"batch {batch}, n {n}: {done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    sys.exit(main())
