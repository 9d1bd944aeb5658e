"""A saved network -> an HTTP service over several ranks, with the standard library alone.

    torchrun --nproc-per-node 2 -m benchmarks.serving.service FOLDER --port 8000

``POST /predict`` takes either of two bodies, and answers in kind:

    application/octet-stream    a safetensors file with one tensor ``x``; the answer has one tensor ``y``
    application/json            {"x": [[…]]}, numbers nested as the input is, with the batch in front; {"y": [[…]]}

``GET /`` says what is served. Inputs that the network does not take are answered with status 400 and the library's
message; after a rank has failed, the service ends with the error that names it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_to_bytes

from pararealize.errors import AgreedError, DistributedError, PararealizeError

__all__ = ["main", "serve_http"]

MOST_BYTES = 1 << 28  # of a request
RAW, JSON = "application/octet-stream", "application/json"


def serve_http(
    predict: Callable[[torch.Tensor], Any], about: dict[str, Any], port: int, dtype: torch.dtype = torch.float32
) -> ThreadingHTTPServer:
    """An HTTP server on this machine alone, which calls ``predict`` from a thread for each connection.

    Args:
        predict: from an input to a tensor, or to a dict with ``logits``.
        about: what ``GET /`` answers.
        port: 0 for a free one.
        dtype: of the input, where numbers in JSON have none.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which keeps connections
        disable_nagle_algorithm = True  # else a small answer waits for the acknowledgement of its header

        def do_GET(self) -> None:
            self._reply(200, JSON, json.dumps(about).encode())

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            kind = self.headers.get("Content-Type", JSON).partition(";")[0].strip()
            if length > MOST_BYTES:
                self.close_connection = True  # its body is not read
                self._reply(413, JSON, b'{"error": "too large"}')
                return
            body = self.rfile.read(length)
            if self.path != "/predict" or kind not in (RAW, JSON):
                self._reply(404 if self.path != "/predict" else 415, JSON, b'{"error": "POST /predict, JSON or raw"}')
                return
            try:
                values = read_tensors(body) if kind == RAW else json.loads(body)
                if not isinstance(values, dict) or values.get("x") is None:
                    raise ValueError('there is no "x"; send {"x": numbers}, or a safetensors file with a tensor x')
                x = values["x"] if kind == RAW else torch.tensor(values["x"], dtype=dtype)
            except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError) as error:
                self._fail(400, error)
                return
            try:
                output = predict(x)
            except DistributedError as error:
                is_over = not isinstance(error, AgreedError)
                self._fail(503 if is_over else 400, error)
                if is_over:
                    threading.Thread(target=self.server.shutdown).start()  # it waits for this very thread
            except PararealizeError as error:
                self._fail(400, error)
            else:
                y = output["logits"] if isinstance(output, dict) else output
                raw = kind == RAW
                self._reply(200, kind, tensors_to_bytes({"y": y}) if raw else _json({"y": y.tolist()}))

        def _fail(self, status: int, error: Exception) -> None:
            self._reply(status, JSON, json.dumps({"error": type(error).__name__, "message": str(error)}).encode())

        def _reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """No line for every request."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _json(value: Any) -> bytes:
    """JSON of numbers, with null for those that it has no word for."""

    def finite(item: Any) -> Any:
        if isinstance(item, list):
            return [finite(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps({name: finite(item) for name, item in value.items()}, allow_nan=False).encode()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.service", description=__doc__)
    parser.add_argument("folder", help="what convert, calibrate, train or network.save has written")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--built-by", help="file.py:callable that builds the original, where the folder needs it")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that a rank waits for another")
    options = parser.parse_args(arguments)

    import torch.distributed as dist

    from pararealize import load
    from pararealize.distributed import make_mesh

    ranks = int(os.environ["WORLD_SIZE"])
    mesh = make_mesh(ranks, device="cpu", timeout=options.timeout)
    net = load(options.folder, options.built_by).eval()
    dtype = next(iter(net.call_conditions.dtypes.values()))
    about = {"model": net.plan.model, "n": net.plan.n, "ranks": ranks}
    stage = net.distribute(mesh, timeout=options.timeout).eval()
    del net  # each rank keeps its own segments
    with stage.serve() as server:
        if server is not None:  # rank 0; the others stand in the line above until it is over
            with serve_http(server, about, options.port, dtype) as http:
                print(f"http://127.0.0.1:{http.server_port}/predict: {about}", flush=True)
                try:
                    http.serve_forever()
                except KeyboardInterrupt:
                    print("no further requests", flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
