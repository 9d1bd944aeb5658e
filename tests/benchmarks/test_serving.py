"""The HTTP service of ``benchmarks/serving``: both kinds of bodies, refusals, and its end with the ranks'."""

import http.client
import json
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.harness import Results
from benchmarks.serving.__main__ import markdown
from benchmarks.serving.service import RAW, serve_http
from benchmarks.serving.worker import WAYS
from pararealize.errors import ExampleError, RankError


def predict(x):
    if x.shape[1] != 3:
        raise ExampleError("three numbers a row")
    if len(x) == 7:
        raise RankError("rank 1 died", 1)
    return {"logits": 2 * x}


@pytest.fixture
def service():
    server = serve_http(predict, {"model": "Net"}, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, thread
    server.shutdown()
    server.server_close()


def test_requests(service):
    server, thread = service
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)

    def post(body, kind, path="/predict"):
        connection.request("POST", path, body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read()

    x = torch.randn(2, 3)
    status, body = post(save({"x": x}), RAW)
    assert status == 200
    assert torch.equal(load(body)["y"], 2 * x)
    status, body = post(json.dumps({"x": x.tolist()}), "application/json; charset=utf-8")
    torch.testing.assert_close(torch.tensor(json.loads(body)["y"]), 2 * x)
    bodies = [b"xx", b'{"y": 1}', b"[1, 2]", b'{"x": null}', b'{"x": {}}', b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}"]
    for wrong, kind in [(b"xx", RAW), (b"[]", RAW), *((body, "application/json") for body in bodies)]:
        assert post(wrong, kind)[0] == 400
    assert json.loads(post(b'{"x": [[1, 2, NaN]]}', "application/json")[1])["y"] == [[2.0, 4.0, None]]
    status, body = post(json.dumps({"x": [[1.0]]}), "application/json")
    assert (status, json.loads(body)) == (400, {"error": "ExampleError", "message": "three numbers a row"})
    assert post(b"{}", "text/plain")[0] == 415
    assert post(b"{}", "application/json", "/elsewhere")[0] == 404
    connection.request("GET", "/")
    assert json.loads(connection.getresponse().read()) == {"model": "Net"}
    status, body = post(save({"x": torch.zeros(7, 3)}), RAW)
    assert (status, json.loads(body)["message"]) == (503, "rank 1 died")
    connection.close()
    thread.join(5)
    assert not thread.is_alive()  # it ends, and the block of serve() with it raises the ranks' error


def test_table(tmp_path):
    results = Results(tmp_path / "results.json")
    results.rows["net, batch 1"] = {way: {"median": 0.01 * (i + 1)} for i, way in enumerate(WAYS)}
    assert "| net, batch 1 | 10.0 | 20.0 | 30.0 | 40.0 | 0.50× | 0.75× |" in markdown(results)
