"""How ranks find each other, and who is named where they do not."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch.distributed as dist

from pararealize.distributed.watchdog import rendezvous
from pararealize.distributed.watchdog.heartbeat import Heartbeat
from pararealize.distributed.watchdog.rendezvous import connect_ranks
from pararealize.errors import DistributedError

WHO = ["rank 0 (segment 1)", "rank 1 (segment 2)", "rank 2 (segment 3)"]


def come(store: dist.HashStore, rank: int, **where: object) -> None:
    """What a rank leaves in the store."""
    card = json.dumps({"token": "t", "pid": 1, "machine": "m", **where})
    store.set(f"machine/{rank}", card)
    store.set(str(rank), card)


def test_who_did_not_come_is_named() -> None:
    with pytest.raises(DistributedError, match=r"rank 1 \(segment 2\) and rank 2 \(segment 3\) did not come .* 0.2 s"):
        connect_ranks(dist.HashStore(), 0, WHO, 0.2)


def test_who_did_not_connect_is_named() -> None:
    store = dist.HashStore()
    for rank in (1, 2):
        come(store, rank, hosts=[], port=1)
    with pytest.raises(DistributedError, match=r"rank 1 .* and rank 2 .* did not connect to rank 0"):
        connect_ranks(store, 0, WHO, 0.2)


def test_who_cannot_be_reached_is_named() -> None:
    store = dist.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    come(store, 0, hosts=["127.0.0.1"], port=port)
    with pytest.raises(DistributedError, match=rf"rank 1 .* cannot connect to rank 0 .* at port {port}"):
        connect_ranks(store, 1, WHO[:2], 5.0)


STRANGERS = {
    "another protocol": b"GET / HTTP/1.1\n",
    "a list": b"[]\n",
    "deep nesting": b"[" * 5000,
    "a wrong token": b"0" * 32 + b" 1\n",
    "a token of another type": b'{"token": 3, "rank": 1}\n',
    "bytes that are no text": bytes(range(256)) * 4 + b"\n",
    "no end": b"0" * 100_000,
    "nothing": b"",
}


def test_strangers_are_turned_away_whatever_they_send() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(connect_ranks, store, 0, WHO[:2], 10.0)
        while not store.check(["machine/0"]):
            time.sleep(0.01)
        store.set("machine/1", store.get("machine/0"))  # so that the first rank goes on to listen
        while not store.check(["0"]):
            time.sleep(0.01)
        card = json.loads(store.get("0"))
        for hello in (
            *STRANGERS.values(),
            *(f"{card['token']} {rank}\n".encode() for rank in ("0", "7", "-1", "x", "")),
        ):
            with socket.create_connection((card["hosts"][0], card["port"])) as stranger, suppress(OSError):
                stranger.sendall(hello)
        second = connect_ranks(store, 1, WHO[:2], 10.0)
        second.send(Heartbeat())
        assert first.result().poll(10) == [(1, Heartbeat())]
        first.result().close()
        second.close()


def test_ranks_of_one_machine_listen_on_its_loopback_interface_alone() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(connect_ranks, store, rank, WHO[:2], 10.0) for rank in range(2)]
        for rank, connections in enumerate(both):
            connections.result().close()
            assert json.loads(store.get(str(rank)))["hosts"] in (["127.0.0.1"], ["::1"])


def test_ranks_of_several_machines_listen_where_the_others_come_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of the interface that the user named, or the one that leads to the others."""
    monkeypatch.setattr(rendezvous, "_interface_address", lambda: None)
    monkeypatch.setattr(rendezvous, "_address_towards", lambda remote: "127.0.0.2" if remote == "far" else None)
    cards = {
        rank: rendezvous._Card(hosts=[host], port=0, token="t", pid=1, machine=host)
        for rank, host in enumerate(("near", "far"))
    }
    with rendezvous._listen(cards, 0) as server:
        assert server.getsockname()[0] == "127.0.0.2"
    monkeypatch.setattr(rendezvous, "_interface_address", lambda: "127.0.0.3")
    with rendezvous._listen(cards, 0) as server:
        assert server.getsockname()[0] == "127.0.0.3"


def test_the_interface_of_the_process_groups_is_that_of_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert rendezvous._interface_address() == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-one")
    assert rendezvous._interface_address() is None
