"""The command: ``python -m benchmarks.fuzz``.

Outcomes stand in a file of lines, one an example, so that a run that was stopped goes on; ``results.json`` and
``table.md`` are written from it.
"""

from __future__ import annotations

import argparse
import json
import linecache
import signal
import sys
import time
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch

from benchmarks.coverage.check import commit
from benchmarks.harness import machine

from .oracle import Outcome, judge
from .programs import Program, program
from .tables import joined, markdown, seeds_of, summary

FOLDER = Path(__file__).parent


class TooLongError(BaseException):
    """An example took longer than its limit; no ``except Exception`` on the way catches this."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, help="print the program of this example")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=int, default=20, help="limit for one example, in processor time")
    parser.add_argument("--lines", type=Path, default=Path("fuzz.jsonl"), help="file of outcomes, a line each")
    parser.add_argument("--again", nargs="*", default=[], help="kinds of outcomes to try anew, such as wrong crash")
    parser.add_argument("--add", type=Path, help="results.json of other examples, whose counts are added")
    parser.add_argument("--out", type=Path, help=f"folder for results.json and table.md, such as {FOLDER.name}")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        print(program(options.seed).source)
        return 0
    torch.set_num_threads(1)
    commit()  # of what is imported now, whatever the folder holds later
    known = _read(options.lines)
    seeds = range(options.first, options.first + options.examples)
    earlier = json.loads(options.add.read_text(encoding="utf-8")) if options.add else None
    if earlier and (twice := seeds_of(earlier) & set(seeds)):
        parser.error(f"--add: {options.add} has {len(twice)} of these examples already, the first is {min(twice)}")
    due = [seed for seed in seeds if seed not in known or known[seed]["kind"] in options.again]
    began = time.perf_counter()
    with options.lines.open("a", encoding="utf-8") as file:
        for number, seed in enumerate(due, 1):
            row = attempt(program(seed), options.seconds) | {"commit": commit()}
            known[seed] = row
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            if row["kind"] in ("wrong", "crash"):
                print(
                    f"{seed} {row['kind']} ({row['stage']}) [{', '.join(row['effects'])}] {row['text'][:200]}",
                    flush=True,
                )
            if number % 200 == 0:
                print(f"{number} examples in {time.perf_counter() - began:.0f} s", flush=True)
    results = summary([known[seed] for seed in seeds])
    print(results["counts"], f"{len(due) / max(time.perf_counter() - began, 1e-9):.1f} examples a second")
    if earlier:
        results = joined(earlier, results)
    if options.out:
        (options.out / "results.json").write_text(
            json.dumps({"machine": machine(), **results}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (options.out / "table.md").write_text(markdown(results), encoding="utf-8")
    return 1 if results["counts"]["wrong"] or results["counts"]["crash"] else 0


def _line(row: dict[str, Any]) -> str:
    return f"{row['seed']} {row['kind']} ({row['stage']}) [{', '.join(row['effects'])}] {row['text'][:200]}"


def attempt(example: Program, seconds: int) -> dict[str, Any]:
    """Run a program within its limit."""
    name = f"<fuzz {example.seed}>"
    linecache.cache[name] = len(example.source), None, example.source.splitlines(keepends=True), name
    scope: dict[str, Any] = {"__name__": "fuzz"}

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, stop)  # of processor time: what else runs on the machine changes no outcome
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        exec(compile(example.source, name, "exec"), scope)
        outcome = judge(SimpleNamespace(**scope))
    except TooLongError:
        outcome = Outcome(kind="crash", stage="", text=f"TooLongError: more than {seconds} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        linecache.cache.pop(name, None)
    return {
        "seed": example.seed,
        "kind": outcome.kind,
        "stage": outcome.stage,
        "effects": example.effects,
        "text": outcome.text[:600],
    }


def _read(path: Path) -> dict[int, dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["seed"]: row for row in map(json.loads, lines)}


if __name__ == "__main__":
    sys.exit(main())
