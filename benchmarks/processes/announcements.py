"""What announcing each call costs: ``python -m benchmarks.processes.announcements``.

Two ranks train one network; step after step, calls are announced to the other rank or not, in turn. Times are those of
the slower rank, from a barrier on; so are the seconds of processor time that all threads of a rank take for a step,
which other work on the machine does not lengthen. Besides, the processor time that the main thread spends on
announcements is added up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.harness import Results, table
from benchmarks.ranks import Case, Measurement, on_ranks
from pararealize import models, pararealize
from pararealize.distributed.stage import samples_of
from pararealize.distributed.watchdog.shared_calls import SharedCalls

from .networks import build, example

FOLDER = Path(__file__).parent
NETWORKS = {"resnet20": (1, 8), "resnet110": (1, 8)}
RANKS, WARM = 2, 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes.announcements", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, help="instead of each network's own")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of announcements.json and announcements.md")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)

    results = Results(options.out / "announcements.json")
    for network in options.networks:
        for batch in options.batches or NETWORKS[network]:
            case = {"network": network, "batch": batch, "rounds": options.rounds}
            results.add(f"{network}, batch {batch}", summary(case))
    (options.out / "announcements.md").write_text(markdown(results))
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def summary(case: Case) -> dict[str, Any]:
    """Medians with and without announcements, their ratio, and the main thread's share."""
    seconds: dict[tuple[str, str], list[float]] = {}

    def line(measurement: Measurement) -> str:
        return f"{case['network']}, batch {case['batch']}: {measurement[0]} {measurement[2] * 1e3:.2f} ms"

    for way, quantity, value in on_ranks(measure, RANKS, case, line):
        seconds.setdefault((way, quantity), []).append(value)
    medians = {key: median(values) for key, values in seconds.items()}
    pairs = zip(seconds["announced", "processor"], seconds["silent", "processor"], strict=True)
    return {
        "announced": round(medians["announced", "step"], 6),
        "silent": round(medians["silent", "step"], 6),
        "ratio": round(medians["announced", "step"] / medians["silent", "step"], 4),
        "processor": round(medians["silent", "processor"], 6),
        "more processor": round(median(a - b for a, b in pairs), 7),
        "main thread": round(medians["main thread", "step"], 7),
        "share": round(medians["main thread", "step"] / medians["silent", "processor"], 5),
        "rounds": case["rounds"],
    }


def measure(case: Case) -> Iterator[Measurement]:
    """Measure one network at one batch, on this rank."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("parareal",))
    torch.manual_seed(0)
    small = case["network"] == "resnet20"
    model = models.resnet20(num_classes=100) if small else build(case["network"])
    x, target = example("resnet110", case["batch"])
    stage = pararealize(model, RANKS, coarse="linear", example_inputs=x).distribute(mesh, timeout=60)

    def step() -> list[float]:
        stage.zero_grad()
        distributed.barrier()
        began, busy = time.perf_counter(), time.process_time()
        stage.step(x, target=target, loss_fn=torch.nn.functional.cross_entropy)
        seconds = torch.tensor([time.perf_counter() - began, time.process_time() - busy], dtype=torch.float64)
        distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
        return seconds.tolist()

    ways: list[tuple[str, Callable[[], contextlib.AbstractContextManager[Any]]]] = [
        ("announced", contextlib.nullcontext),
        ("silent", _silent),
    ]
    for i in range(-WARM, case["rounds"]):
        for way, context in ways[:: 1 if i % 2 else -1]:
            with context():
                seconds, processor = step()
            if i >= 0:
                yield way, "step", seconds
                yield way, "processor", processor
    for _ in range(case["rounds"]):
        with _timed() as spent:
            step()
        yield "main thread", "step", sum(spent)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Calls are not announced, on all ranks alike."""
    with (
        mock.patch.object(SharedCalls, "begin"),
        mock.patch.object(SharedCalls, "confirm"),
        mock.patch("pararealize.distributed.stage.samples_of", return_value={}),
    ):
        yield


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    """The seconds of processor time that announcements take of the main thread, one after the other."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.thread_time() - began)

        return call

    with (
        mock.patch.object(SharedCalls, "begin", timed(SharedCalls.begin)),
        mock.patch.object(SharedCalls, "confirm", timed(SharedCalls.confirm)),
        mock.patch("pararealize.distributed.stage.samples_of", timed(samples_of)),
    ):
        yield spent


def markdown(results: Results) -> str:
    head = (
        "",
        "announced, ms",
        "not, ms",
        "ratio",
        "processor time, ms",
        "more with announcements, µs",
        "announcements on the main thread, µs",
        "of the step's",
    )
    lines = [
        (
            name,
            f"{row['announced'] * 1e3:.2f}",
            f"{row['silent'] * 1e3:.2f}",
            f"{row['ratio']:.3f}",
            f"{row['processor'] * 1e3:.2f}",
            f"{row['more processor'] * 1e6:.0f}",
            f"{row['main thread'] * 1e6:.0f}",
            f"{row['share']:.2%}",
        )
        for name, row in results.rows.items()
    ]
    text = (
        "Steps on two ranks with and without announcements of calls, by `python -m benchmarks.processes.announcements`."
    )
    return f"# Announcements\n\n{text} See [README.md](README.md).\n\n{table(head, lines)}\n"


if __name__ == "__main__":
    sys.exit(main())
