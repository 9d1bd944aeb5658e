"""Accuracy of training with few multigrid iterations: ``nice python -m benchmarks.multigrid.accuracy``.

Every run is evaluated twice: serially, and with the multigrid that it was trained with. Results are added to
``results.json`` run by run, so that a run that was broken off goes on; ``table.md`` is written anew after each.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pararealize import layer_parallel
from pararealize.data.catalogue import load
from pararealize.multigrid.monitor import Monitor
from pararealize.multigrid.oneshot import OneShot, names_of

from .networks import DigitsNet, PeaksNet

HERE = Path(__file__).resolve().parent
RESULTS, TABLE = HERE / "results.json", HERE / "table.md"
SEEDS = (0, 1, 2)
METHODS = ("exact", "1/1", "2/1", "3/2", "monitored", "one-shot 1/1")
EVALUATED = (2, 1)  # with which iterations exact training is evaluated besides

PROBLEMS: dict[str, dict[str, Any]] = {
    "peaks": {"net": PeaksNet, "data": {"count": (5000, 1000), "batch_size": 250}, "epochs": 30, "lr": 0.01},
    "digits": {
        "net": DigitsNet,
        "data": {"image_size": 8, "channels": 1, "batch_size": 128},
        "epochs": 10,
        "lr": 0.01,
    },
}


def train(problem: str, method: str, seed: int) -> dict[str, Any]:
    """One run: final accuracies in per cent, and what the monitor did."""
    settings = PROBLEMS[problem]
    torch.manual_seed(seed)
    data = load(problem, seed=seed, **settings["data"])
    net = layer_parallel(settings["net"](), 2, 4, example_inputs=data.example(2), exact=method == "exact")
    optimizer = torch.optim.Adam(net.parameters(), lr=settings["lr"])
    steps = settings["epochs"] * data.steps
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    forward, backward = map(int, method.rsplit(maxsplit=1)[-1].split("/")) if "/" in method else EVALUATED
    net.forward_iterations, net.backward_iterations = forward, backward
    monitor = Monitor(net, every=data.steps, exact_after=round(0.8 * steps)) if method == "monitored" else None
    one_shot = OneShot(net, optimizer, forward, backward) if method.startswith("one-shot") else None
    begun, iterations = time.process_time(), 0
    for epoch in range(settings["epochs"]):
        for x, labels in data.epoch(epoch):
            iterations += 0 if net.exact else net.forward_iterations
            loss: Callable[[], Tensor] = lambda x=x, labels=labels: cross_entropy(net(x), labels)  # noqa: E731
            if one_shot is not None:
                one_shot.step(loss, names_of(x))
            else:
                optimizer.zero_grad()
                loss().backward()
                if monitor is not None:
                    monitor.check(loss)
                optimizer.step()
            rate.step()
    net.eval()
    net.warm_start = False
    with net.serially():
        serial = accuracy(net, data)
    net.exact = False
    row = {
        "problem": problem,
        "method": method,
        "seed": seed,
        "serial": serial,
        "multigrid": accuracy(net, data),
        "iterations": round(iterations / steps, 2),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }
    if monitor is not None:
        row |= {"events": [str(event) for event in monitor.events], "cosines": monitor.cosines}
    return row


def accuracy(net: nn.Module, data: Any) -> float:
    """Per cent of the test part."""
    with torch.no_grad():
        right = sum(int((net(x).argmax(1) == labels).sum()) for x, labels in data.test_batches())
    return round(100 * right / data.test_count, 2)


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown: mean of the seeds, and each."""
    lines = [
        "| problem | training | evaluated serially | with the same multigrid | forward iterations a step |",
        "|---|---|---|---|---|",
    ]
    for problem in PROBLEMS:
        for method in METHODS:
            runs = [r for r in results if (r["problem"], r["method"]) == (problem, method)]
            runs.sort(key=lambda r: r["seed"])
            if runs:
                cells = [_cell([r[kind] for r in runs]) for kind in ("serial", "multigrid")]
                mean = statistics.mean(r["iterations"] for r in runs)
                lines.append(f"| {problem} | {method} | {cells[0]} | {cells[1]} | {mean:.2f} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def stored_runs() -> list[dict[str, Any]]:
    """The runs of ``results.json``; another process may have added some."""
    runs: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return runs


def main() -> None:
    """All runs that have no row yet; ``--problem NAME`` for one problem alone."""
    torch.set_num_threads(1)
    chosen = sys.argv[sys.argv.index("--problem") + 1 :] if "--problem" in sys.argv else list(PROBLEMS)
    for seed in SEEDS:
        for problem in chosen:
            for method in METHODS:
                if any((r["problem"], r["method"], r["seed"]) == (problem, method, seed) for r in stored_runs()):
                    continue
                run = train(problem, method, seed)
                results = [*stored_runs(), run]
                print({key: value for key, value in results[-1].items() if key != "cosines"}, flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                TABLE.write_text(table(results))


if __name__ == "__main__":
    main()
