"""The command: ``python -m benchmarks.serving``.

Two processes of one thread each. On the first, every way to answer a request takes its turn, round after round.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_to_bytes
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.harness import Results, table
from benchmarks.processes.networks import build, example
from benchmarks.ranks import Case, Measurement, on_ranks

from .service import RAW, serve_http

__all__ = ["main"]

FOLDER = Path(__file__).parent
RANKS, WARMUP = 2, 3
CASES = {"resnet110": (1, 8), "resnet1001": (1,), "vit24": (1,)}
WAYS = {
    "original": "the original, called",
    "ranks": "two ranks, called",
    "original over HTTP": "the original, over HTTP",
    "ranks over HTTP": "two ranks, over HTTP",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and table.md")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    results = Results(options.out / "results.json")
    for network in options.networks:
        for batch in CASES[network]:
            case = {"network": network, "batch": batch, "rounds": options.rounds}
            times: dict[str, list[float]] = {}
            for way, _, seconds in on_ranks(answer, RANKS, case, _line):
                times.setdefault(way, []).append(seconds)
            row = {way: {"median": round(median(s), 6), "least": round(min(s), 6)} for way, s in times.items()}
            results.add(f"{network}, batch {batch}", row | {"rounds": options.rounds})
    (options.out / "table.md").write_text(markdown(results))
    print(json.dumps(results.rows, indent=1) if options.json else markdown(results))
    return 0


def _line(measurement: Measurement) -> str:
    return f"{measurement[0]}: {measurement[2] * 1e3:.1f} ms"


def answer(case: Case) -> Iterator[Measurement]:
    """Seconds of a request, way after way; on rank 0, while the other one serves."""
    from pararealize import pararealize

    x, _ = example(case["network"], case["batch"])
    model = build(case["network"]).eval()
    net = pararealize(model, RANKS, coarse="linear", example_inputs=x).eval()
    stage = net.distribute(init_device_mesh("cpu", (RANKS,)), timeout=60).eval()

    def original(inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = model(inputs)
        return output

    with stage.serve() as server:
        if server is None:
            return
        services = [serve_http(predict, {}, 0) for predict in (original, server)]
        for service in services:
            threading.Thread(target=service.serve_forever, daemon=True).start()
        ways: list[Callable[[torch.Tensor], Any]] = [original, server, *(_client(s.server_port) for s in services)]
        for i in range(WARMUP + case["rounds"]):
            for name, way in zip(WAYS, ways, strict=True):
                start = time.perf_counter()
                way(x)
                if i >= WARMUP:
                    yield name, "latency", time.perf_counter() - start
        for service in services:
            service.shutdown()
            service.server_close()


def _client(port: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Requests over one connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(x: torch.Tensor) -> torch.Tensor:
        connection.request("POST", "/predict", tensors_to_bytes({"x": x}), {"Content-Type": RAW})
        return read_tensors(connection.getresponse().read())["y"]

    return ask


def markdown(results: Results) -> str:
    """A row a case: median milliseconds of each way, and how many times faster two ranks are."""
    head = ["", *(f"{words}, ms" for words in WAYS.values()), "called", "over HTTP"]
    rows = []
    for name, row in results.rows.items():
        ms = {way: row[way]["median"] * 1e3 for way in WAYS}
        ratios = [ms[f"original{how}"] / ms[f"ranks{how}"] for how in ("", " over HTTP")]
        rows.append([name, *(f"{value:.1f}" for value in ms.values()), *(f"{ratio:.2f}×" for ratio in ratios)])
    return f"# Serving on two ranks\n\n{table(head, rows)}\n"


if __name__ == "__main__":
    sys.exit(main())
