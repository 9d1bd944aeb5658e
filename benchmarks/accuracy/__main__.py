"""The command: ``python -m benchmarks.accuracy table1``. What was stopped goes on where it was.

``table1`` are the errors, ``ablations`` what happens when a part is taken away. ``table3``, the time to a fixed error,
``draw`` and ``evidence`` train nothing: they make tables and pictures of the rows that are there, and the last of them
the table behind ``coarse="auto"`` too.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import Results, isolated
from pararealize.data.catalogue import load

from .groups import groups
from .measure import DATA, case, measure
from .methods import method_of
from .networks import FAMILIES
from .tables import write, write_evidence

FOLDER = Path(__file__).parent
EVIDENCE = FOLDER.parents[1] / "pararealize" / "coarse" / "coarse_evidence.json"
KINDS = {False: ("linear", "bottleneck", "depthwise", "paper"), True: ("linear", "bottleneck", "block")}
FROM_INPUT = ("linear",)  # kinds that are tried with adapters that read the images, too
ABLATED = ("bottleneck",)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("table", choices=("table1", "table3", "ablations", "draw", "evidence"))
    parser.add_argument("--data", nargs="+", default=["digits"], choices=tuple(DATA))
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), help="those of the data set where left out")
    parser.add_argument("--n", type=int, nargs="+", default=[12, 6, 3], help="numbers of segments")
    parser.add_argument("--kinds", nargs="+", help="coarse kinds; all that suit the family where left out")
    parser.add_argument(
        "--windows", nargs="+", default=["1"], help="numbers of windows, or auto: the most that are free"
    )
    parser.add_argument(
        "--methods", nargs="+", help="methods by name, such as original 12x3-linear, in place of all that"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of the data set's own, to try it out")
    parser.add_argument("--workers", type=int, default=2, help="cases at once")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, tables and pictures")
    options = parser.parse_args(arguments)

    results = Results(options.out / "results.json")
    if options.table in ("table1", "ablations"):
        methods = ablations if options.table == "ablations" else table1
        cases = [
            case(data, family, method, seed)
            for data in _there(options.data)
            for seed in range(options.seeds)
            for family in options.families or DATA[data].families
            for method in options.methods or methods(family, options.n, options.kinds, options.windows)
            if method_of(method).n <= FAMILIES[family].blocks
        ]
        run(cases, functools.partial(measure, epochs=options.epochs), results, workers=options.workers)
    write(results, options.out)
    if options.table == "evidence":
        write_evidence(groups(results.rows), EVIDENCE)
    return 0 if all("failed" not in row for row in results.rows.values()) else 1


def _there(names: Sequence[str]) -> Iterator[str]:
    """The data sets whose files are there; of others, what is missing and how to get it is told."""
    for name in names:
        row = isolated(lambda name=name: {"there": bool(load(name, count=(1, 1)).shape)}, seconds=60, gibibytes=8)
        if "failed" in row:
            print(f"LEFT OUT: {name}: {row['error']}", file=sys.stderr, flush=True)
        else:
            yield name


def table1(family: str, numbers: Sequence[int], kinds: Sequence[str] | None, windows: Sequence[str]) -> list[str]:
    """The original, and every n, number of windows and kind."""
    kinds = kinds or [*KINDS[FAMILIES[family].tokens], *(f"{kind}@input" for kind in FROM_INPUT)]
    sizes = [f"{n}" if many == "1" else f"{n}x{many}" for n in numbers for many in windows]
    return ["original", *(f"{size}-{kind}" for size in sizes for kind in kinds)]


def ablations(_family: str, numbers: Sequence[int], kinds: Sequence[str] | None, _windows: Sequence[str]) -> list[str]:
    """The original, its wider sister, and every n and kind with one part taken away."""
    methods = ["original"]
    for n in numbers:
        for kind in kinds or ABLATED:
            name = f"{n}-{kind}"
            methods += [name, f"{name}+adapters", f"{name}+wide", *([f"{name}+coarse"] if kind != "linear" else [])]
        methods.append(f"{n}-linear+none")
    return methods


def run(cases: Sequence[str], work: Any, results: Results, *, workers: int) -> None:
    """Measure what has no row yet, each case in a process of its own, so many at once."""
    _import_early()
    missing = [name for name in dict.fromkeys(cases) if name not in results.rows]
    lock, done = threading.Lock(), iter(range(1, len(missing) + 1))

    def one(name: str) -> None:
        row = isolated(lambda: work(name), seconds=7200, gibibytes=8)
        with lock:
            results.add(name, row)
            print(f"[{next(done)}/{len(missing)}] {name}: {_line(row)}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(one, name) for name in missing]:
            future.result()


def _import_early() -> None:
    """What every case would import for itself, seconds at a time."""
    for name in ("sklearn.datasets", "torch._dynamo", "torch._subclasses.fake_tensor", "sympy"):
        importlib.import_module(name)


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['failed']}: {row['error']}"
    return f"error {100 * row['error']:.2f}% in {row['seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
