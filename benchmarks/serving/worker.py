"""A case -> seconds of requests to two ranks, answered in every way in turn; both ranks run it."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_to_bytes
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.processes.networks import build, example
from benchmarks.ranks import Case, Measurement

from .service import RAW, serve_http

__all__ = ["RANKS", "WAYS", "answer"]

RANKS, WARMUP = 2, 3
WAYS = {
    "original": "the original, called",
    "ranks": "two ranks, called",
    "original over HTTP": "the original, over HTTP",
    "ranks over HTTP": "two ranks, over HTTP",
}


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
