"""How ranks find each other, and who is named where they do not."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from pararealize.distributed.watchdog.heartbeat import Heartbeat
from pararealize.distributed.watchdog.rendezvous import connect_ranks
from pararealize.errors import DistributedError

WHO = ["rank 0 (segment 1)", "rank 1 (segment 2)", "rank 2 (segment 3)"]


def test_who_did_not_come_is_named() -> None:
    with pytest.raises(DistributedError, match=r"rank 1 \(segment 2\) and rank 2 \(segment 3\) did not come .* 0.2 s"):
        connect_ranks(dist.HashStore(), 0, WHO, 0.2)


def test_who_did_not_connect_is_named() -> None:
    store = dist.HashStore()
    for rank in (1, 2):
        store.set(str(rank), json.dumps({"hosts": [], "port": 1, "token": "t", "pid": 1, "machine": "m"}))
    with pytest.raises(DistributedError, match=r"rank 1 .* and rank 2 .* did not connect to rank 0"):
        connect_ranks(store, 0, WHO, 0.2)


def test_who_cannot_be_reached_is_named() -> None:
    store = dist.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    store.set("0", json.dumps({"hosts": ["127.0.0.1"], "port": port, "token": "t", "pid": 1, "machine": "m"}))
    with pytest.raises(DistributedError, match=rf"rank 1 .* cannot connect to rank 0 .* at port {port}"):
        connect_ranks(store, 1, WHO[:2], 5.0)


def test_strangers_are_turned_away() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(connect_ranks, store, 0, WHO[:2], 10.0)
        while not store.check(["0"]):
            time.sleep(0.01)
        port = json.loads(store.get("0"))["port"]
        for hello in (b"GET / HTTP/1.1\n", b"[]\n", b'{"token": "wrong", "rank": 1}\n', b""):
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(hello)
        second = connect_ranks(store, 1, WHO[:2], 10.0)
        second.send(Heartbeat())
        assert first.result().poll(10) == [(1, Heartbeat())]
        first.result().close()
        second.close()
