"""What more windows cost on two ranks: ``python -m benchmarks.processes.windows``.

Two ranks train one network cut into 1, 4 and 16 windows of two segments, step after step in turn. Times are those of
the slower rank, from a barrier on; so are the seconds of processor time that all threads of a rank take for a step,
which other work on the machine lengthens less. What is predicted beside them is the simulated step of the plans.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.harness import Results, table
from benchmarks.ranks import Case, Measurement, on_ranks
from pararealize import pararealize, simulate

from .networks import build, example

FOLDER = Path(__file__).parent
NETWORKS = {"resnet110": (1, 8), "resnet1001": (1, 8)}
WINDOWS = (1, 4, 16)
RANKS, WARM = 2, 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes.windows", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, help="instead of each network's own")
    parser.add_argument("--windows", nargs="+", type=int, default=list(WINDOWS), help="the first is compared with")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of windows.json and windows.md")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)

    results = Results(options.out / "windows.json")
    for network in options.networks:
        for batch in options.batches or NETWORKS[network]:
            case = {"network": network, "batch": batch, "rounds": options.rounds, "windows": options.windows}
            for windows, row in summary(case).items():
                results.add(f"{network}, batch {batch}, windows {windows}", row)
    (options.out / "windows.md").write_text(markdown(results))
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def summary(case: Case) -> dict[str, dict[str, Any]]:
    """For each number of windows, medians and their ratio to those of the first, of the same rounds."""
    seconds: dict[tuple[str, str], list[float]] = {}

    def line(measurement: Measurement) -> str:
        return f"{case['network']}, batch {case['batch']}: windows {measurement[0]} {measurement[2] * 1e3:.2f} ms"

    for way, quantity, value in on_ranks(measure, RANKS, case, line):
        seconds.setdefault((way, quantity), []).append(value)
    first, *_ = ways = list(map(str, case["windows"]))
    return {way: _row(seconds, way, first) | {"rounds": case["rounds"]} for way in ways}


def _row(seconds: dict[tuple[str, str], list[float]], way: str, first: str) -> dict[str, Any]:
    def ratio(quantity: str) -> float:
        pairs = zip(seconds[way, quantity], seconds[first, quantity], strict=True)
        return round(median(ours / theirs for ours, theirs in pairs), 4)

    return {
        "step": round(median(seconds[way, "step"]), 6),
        "least": round(min(seconds[way, "step"]), 6),
        "ratio": ratio("step"),
        "ratio of the least": round(min(seconds[way, "step"]) / min(seconds[first, "step"]), 4),
        "processor": round(median(seconds[way, "processor"]), 6),
        "processor ratio": ratio("processor"),
        "predicted ratio": ratio("predicted"),
    }


def measure(case: Case) -> Iterator[Measurement]:
    """Measure one network at one batch, on this rank."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("parareal",))
    model = build(case["network"])
    x, target = example(case["network"], case["batch"])
    stages = {}
    for windows in case["windows"]:
        net = pararealize(model, RANKS, coarse="linear", windows=windows, example_inputs=x)
        yield str(windows), "predicted", simulate(net.plan, reduce_linear=True).step
        stages[windows] = net.distribute(mesh, timeout=120)

    def step(windows: int) -> list[float]:
        stages[windows].zero_grad()
        distributed.barrier()
        began, busy = time.perf_counter(), time.process_time()
        stages[windows].step(x, target=target, loss_fn=torch.nn.functional.cross_entropy)
        seconds = torch.tensor([time.perf_counter() - began, time.process_time() - busy], dtype=torch.float64)
        distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
        return seconds.tolist()

    for i in range(-WARM, case["rounds"]):
        for windows in case["windows"][:: 1 if i % 2 else -1]:
            seconds, processor = step(windows)
            if i >= 0:
                yield str(windows), "step", seconds
                yield str(windows), "processor", processor


def markdown(results: Results) -> str:
    head = (
        "",
        "step, ms",
        "to one window",
        "least, ms",
        "to one window",
        "processor, ms",
        "to one window",
        "predicted",
    )
    lines = [
        (
            name,
            f"{row['step'] * 1e3:.2f}",
            f"{row['ratio']:.3f}",
            f"{row['least'] * 1e3:.2f}",
            f"{row['ratio of the least']:.3f}",
            f"{row['processor'] * 1e3:.2f}",
            f"{row['processor ratio']:.3f}",
            f"{row['predicted ratio']:.3f}",
        )
        for name, row in results.rows.items()
    ]
    text = "Steps on two ranks with several windows, by `python -m benchmarks.processes.windows`."
    return f"# Windows\n\n{text} See [README.md](README.md).\n\n{table(head, lines)}\n"


if __name__ == "__main__":
    sys.exit(main())
