"""What goes over the connections of three ranks, and how an end shows."""

import os
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from pararealize.distributed.watchdog.connections import Connections, _exit_status, _words
from pararealize.distributed.watchdog.heartbeat import Failure, Heartbeat, Loss, Message
from pararealize.distributed.watchdog.rendezvous import connect_ranks

WHO = ["rank 0 (segment 1)", "rank 1 (segment 2)", "rank 2 (segment 3)"]


@pytest.fixture
def trio():
    """Three ranks, as threads of one process."""
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        links = list(pool.map(lambda rank: connect_ranks(store, rank, WHO, 10.0), range(3)))
    yield links
    for one in links:
        if not one.closed:
            one.close()


def receive(links: Connections, count: int) -> list[tuple[int, Message | Loss]]:
    found: list[tuple[int, Message | Loss]] = []
    until = time.monotonic() + 10
    while len(found) < count and time.monotonic() < until:
        found += links.poll(0.1)
    return found


def test_every_rank_hears_every_other_one(trio: list[Connections]) -> None:
    for rank, links in enumerate(trio):
        links.send(Heartbeat(doing=f"g^{rank + 1}"))
    for rank, links in enumerate(trio):
        heard = {other: message.doing for other, message in receive(links, 2)}
        assert heard == {other: f"g^{other + 1}" for other in range(3) if other != rank}


def test_last_words_come_before_the_end(trio: list[Connections]) -> None:
    trio[1].send(Failure(rank=1, message="x" * 10_000))
    trio[1].close()
    first, second = receive(trio[2], 2)
    assert first == (1, Failure(rank=1, message="x" * 10_000))
    assert second == (1, Loss("died (its process is gone)"))
    trio[2].send(Heartbeat())  # to those that are left
    assert [rank for rank, message in receive(trio[0], 2) if isinstance(message, Heartbeat)] == [2]


def test_one_that_does_not_read_holds_up_nobody(trio: list[Connections]) -> None:
    """As a stopped process does not: heartbeats for it are left out, and what matters is kept."""
    for _ in range(400):
        trio[0].send(Heartbeat(doing="x" * 60_000))
    trio[0].send(Failure(rank=0, message=""))
    heard: list[type] = []
    until = time.monotonic() + 10
    while Failure not in heard and time.monotonic() < until:
        heard += [type(message) for _, message in trio[1].poll(0)]
        trio[0].send(Heartbeat())  # and with it what could not be sent before
    assert 0 < heard.index(Failure) < 400


def test_a_sleeper_is_woken(trio: list[Connections]) -> None:
    threading.Timer(0.1, trio[0].wake).start()
    assert trio[0].poll(60) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of Python 3.12, where torch has threads
def test_a_forked_process_keeps_no_connection(trio: list[Connections]) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"closed" if all(links.closed for links in trio) else b"open")
        os._exit(0)
    assert os.read(reader, 10) == b"closed"
    os.waitpid(child, 0)
    os.close(reader), os.close(writer)
    trio[0].send(Heartbeat())
    assert receive(trio[1], 1) == [(0, Heartbeat())]


def test_a_process_that_has_ended_leaves_its_status() -> None:
    """Until its parent has asked for it, on newer systems for longer, and only if it has ended."""
    statuses = []
    for command in ("import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)", "input()"):
        child = subprocess.Popen([sys.executable, "-S", "-c", command], stdin=subprocess.PIPE)
        process = os.pidfd_open(child.pid)
        if command != "input()":
            select.select([process], [], [], 30)
        statuses.append(_exit_status(process, child.pid))
        child.communicate(b"\n")
        assert _exit_status(process, child.pid) in (child.returncode, None)
        os.close(process)
    assert statuses == [3, -9, None]
    assert [_words(status) for status in (3, -9)] == ["with exit status 3", "killed by SIGKILL"]
