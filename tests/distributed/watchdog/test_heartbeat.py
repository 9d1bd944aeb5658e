import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from pararealize.distributed.watchdog.heartbeat import Links, Message, meet
from pararealize.errors import DistributedError

WHO = ["rank 0 (segment 1)", "rank 1 (segment 2)", "rank 2 (segment 3)"]


@pytest.fixture
def trio():
    """Three ranks, as threads of one process."""
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        links = list(pool.map(lambda rank: meet(store, rank, WHO, 10.0), range(3)))
    yield links
    for one in links:
        if not one.closed:
            one.close()


def receive(links: Links, count: int) -> list[tuple[int, Message]]:
    found: list[tuple[int, Message]] = []
    until = time.monotonic() + 10
    while len(found) < count and time.monotonic() < until:
        found += links.poll(0.1)
    return found


def test_every_rank_hears_every_other_one(trio: list[Links]) -> None:
    for rank, links in enumerate(trio):
        links.send({"is": "beat", "doing": f"g^{rank + 1}"})
    for rank, links in enumerate(trio):
        heard = {other: message["doing"] for other, message in receive(links, 2)}
        assert heard == {other: f"g^{other + 1}" for other in range(3) if other != rank}


def test_last_words_come_before_the_end(trio: list[Links]) -> None:
    trio[1].send({"is": "failure", "message": "x" * 10_000})
    trio[1].close()
    first, second = receive(trio[2], 2)
    assert (first[0], first[1]["is"]) == (1, "failure")
    assert second == (1, {"is": "gone", "how": "died (its process is gone)"})
    trio[2].send({"is": "beat"})  # to those that are left
    assert [rank for rank, message in receive(trio[0], 2) if message["is"] == "beat"] == [2]


def test_one_that_does_not_read_holds_up_nobody(trio: list[Links]) -> None:
    """As a stopped process does not: heartbeats for it are left out, and what matters is kept."""
    for _ in range(400):
        trio[0].send({"is": "beat", "doing": "x" * 60_000})
    trio[0].send({"is": "failure"})
    heard: list[str] = []
    until = time.monotonic() + 10
    while "failure" not in heard and time.monotonic() < until:
        heard += [message["is"] for _, message in trio[1].poll(0)]
        trio[0].send({"is": "beat"})  # and with it what could not be sent before
    assert 0 < heard.index("failure") < 400


def test_a_sleeper_is_woken(trio: list[Links]) -> None:
    threading.Timer(0.1, trio[0].wake).start()
    assert trio[0].poll(60) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of Python 3.12, where torch has threads
def test_a_forked_process_keeps_no_connection(trio: list[Links]) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"closed" if all(links.closed for links in trio) else b"open")
        os._exit(0)
    assert os.read(reader, 10) == b"closed"
    os.waitpid(child, 0)
    os.close(reader), os.close(writer)
    trio[0].send({"is": "beat"})
    assert receive(trio[1], 1) == [(0, {"is": "beat"})]


def test_who_did_not_come_is_named() -> None:
    with pytest.raises(DistributedError, match=r"rank 1 \(segment 2\) and rank 2 \(segment 3\) did not come .* 0.2 s"):
        meet(dist.HashStore(), 0, WHO, 0.2)


def test_who_did_not_connect_is_named() -> None:
    store = dist.HashStore()
    for rank in (1, 2):
        store.set(str(rank), json.dumps({"hosts": [], "port": 1, "token": "t", "pid": 1, "machine": "m"}))
    with pytest.raises(DistributedError, match=r"rank 1 .* and rank 2 .* did not connect to rank 0"):
        meet(store, 0, WHO, 0.2)


def test_who_cannot_be_reached_is_named() -> None:
    store = dist.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    store.set("0", json.dumps({"hosts": ["127.0.0.1"], "port": port, "token": "t", "pid": 1, "machine": "m"}))
    with pytest.raises(DistributedError, match=rf"rank 1 .* cannot connect to rank 0 .* at port {port}"):
        meet(store, 1, WHO[:2], 5.0)


def test_strangers_are_turned_away() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, store, 0, WHO[:2], 10.0)
        while not store.check(["0"]):
            time.sleep(0.01)
        port = json.loads(store.get("0"))["port"]
        for hello in (b"GET / HTTP/1.1\n", b"[]\n", b'{"token": "wrong", "rank": 1}\n', b""):
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(hello)
        second = meet(store, 1, WHO[:2], 10.0)
        second.send({"is": "beat"})
        assert receive(first.result(), 1) == [(1, {"is": "beat"})]
        first.result().close()
        second.close()
