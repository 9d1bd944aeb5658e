"""The command: ``python -m benchmarks.multigrid``.

Two processes of one thread make every way once and time them in turn; medians are taken over the rounds. Then steps on
more ranks are simulated from measured times of single layers.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch.multiprocessing as multiprocessing

from benchmarks.harness import Results, median

from .simulated import draw, simulated
from .tables import markdown
from .worker import SERIAL, WAYS, run

FOLDER = Path(__file__).parent
RANKS = 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multigrid", description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=[64, 128], help="N, the number of layers")
    parser.add_argument("--ways", nargs="+", default=[*SERIAL, *WAYS], choices=[*SERIAL, *WAYS])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and simulated.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args(arguments)

    results = Results(given.out / "results.json")
    for steps in given.steps:
        asked = {"steps": steps, "rounds": given.rounds, "ways": given.ways}
        results.add(f"N = {steps}", _measured(asked))
    results.add("simulated", simulated(given.steps))
    draw(results.rows["simulated"], given.out / "simulated.svg")
    (given.out / "table.md").write_text(markdown(results))
    print(json.dumps(results.rows, indent=1) if given.json else markdown(results))
    return 0


def _measured(asked: dict[str, Any]) -> dict[str, Any]:
    """Times of every way, and how far its gradient is from the exact one."""
    report: Any = multiprocessing.get_context("spawn").Queue()
    started = multiprocessing.start_processes(
        run, (RANKS, _free_port(), asked, report), nprocs=RANKS, join=False, start_method="spawn"
    )
    rows: dict[str, dict[str, Any]] = {}
    times: dict[tuple[str, str], list[float]] = {}
    done, shown = False, time.monotonic()
    while not done or not report.empty():
        done = done or started.join(timeout=0.1)
        while (measured := _next(report)) is not None:
            way, quantity, value = measured
            if quantity in ("step", "processor"):
                times.setdefault((way, quantity), []).append(value)
            else:
                rows.setdefault(way, {})[quantity] = value
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"N = {asked['steps']}: {way} {quantity} {value:.4g}", file=sys.stderr, flush=True)
    for (way, quantity), found in times.items():
        summary = {"median": median(found), "least": min(found), "most": max(found)}
        rows.setdefault(way, {})[quantity] = {**{k: round(v, 5) for k, v in summary.items()}, "runs": len(found)}
    return rows


def _next(report: Any) -> Any:
    try:
        return report.get(timeout=0.2)
    except queue.Empty:
        return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
