"""The command: ``python -m benchmarks.fuzz_files``.

Outcomes stand in a file of lines, one a case, so that a run that was stopped goes on; ``results.json`` and ``table.md``
are written from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.coverage.check import commit
from benchmarks.harness import machine

from .tables import FAULTS, markdown, summary
from .targets import COUNTS, TARGETS
from .trial import Limits, outcomes

FOLDER = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_files", description=__doc__)
    parser.add_argument("--kinds", nargs="*", choices=TARGETS, default=list(TARGETS), help="of files")
    parser.add_argument("--examples", type=int, help="of each kind; otherwise as many as the README says")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this case of each kind alone, and show its traceback")
    parser.add_argument("--seconds", type=int, default=20, help="limit for one case, in processor time")
    parser.add_argument("--lines", type=Path, default=Path("fuzz_files.jsonl"), help="file of outcomes, a line each")
    parser.add_argument("--again", nargs="*", default=[], help="outcomes to try anew, such as raw hang")
    parser.add_argument("--out", type=Path, help=f"folder for results.json and table.md, such as {FOLDER.name}")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _one(options.kinds, options.seed)
    commit()  # of what is imported now, whatever the folder holds later
    known = _read(options.lines)
    chosen: list[tuple[str, int]] = []
    for kind in options.kinds:
        seeds = range(options.first, options.first + (options.examples or COUNTS[kind]))
        chosen += [(kind, seed) for seed in seeds]
        due = [seed for seed in seeds if (kind, seed) not in known or known[kind, seed]["outcome"] in options.again]
        known |= _run(kind, due, Limits(processor=options.seconds), options.lines)
    results = summary([known[key] for key in chosen])
    for kind, counts in results["counts"].items():
        print(kind, counts)
    if options.out:
        (options.out / "results.json").write_text(
            json.dumps({"machine": machine(), **results}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (options.out / "table.md").write_text(markdown(results), encoding="utf-8")
    return int(bool(results["faults"]))


def _run(kind: str, seeds: list[int], limits: Limits, lines: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of the seeds, which are appended to the file of lines one by one."""
    rows = {}
    began = time.perf_counter()
    with lines.open("a", encoding="utf-8") as file:
        for number, (seed, outcome) in enumerate(outcomes(kind, TARGETS[kind], seeds, limits), 1):
            row = {"kind": kind, "seed": seed, "outcome": outcome.outcome, "change": outcome.change}
            row |= {"text": outcome.text, "where": outcome.where, "commit": commit()}
            rows[kind, seed] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if outcome.outcome in FAULTS:
                print(f"{kind} {seed} {outcome.outcome} [{outcome.change!a}] {outcome.where} {outcome.text[:200]!a}")
            if number % 200 == 0:
                print(f"{number} {kind} in {time.perf_counter() - began:.0f} s", flush=True)
    return rows


def _one(kinds: list[str], seed: int) -> int:
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            trial = TARGETS[kind]()(Random(f"{kind} {seed}"), Path(folder))
            print(f"{kind} {seed}: {trial.change!a}")
            print(ascii(trial.attempt() or "right"))
    return 0


def _read(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(row["kind"], row["seed"]): row for row in map(json.loads, lines)}


if __name__ == "__main__":
    sys.exit(main())
