"""Store, rank -> Connections: how the ranks find each other once, and connect each with every other one.

Every rank leaves its addresses in the store; the higher rank of a pair calls the lower one. The store is needed only
for that: afterwards nothing depends on the process that hosts it, whose death is the death of one rank like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import Store

from pararealize.errors import DistributedError

from .connections import Connection, Connections

__all__ = ["connect_ranks"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """What a rank leaves in the store.

    Attributes:
        hosts: addresses at which it may be reached.
        port: where it listens.
        token: known to the ranks of this run alone, so that a stranger, or another run's rank at that port, is told
            apart.
        pid: of its process.
        machine: equal for processes that can see each other by number.
    """

    hosts: Sequence[str]
    port: int
    token: str
    pid: int
    machine: str


def connect_ranks(store: Store, rank: int, who: Sequence[str], timeout: float) -> Connections:
    """Connect this rank with every other one; all ranks call this at about the same time.

    Args:
        store: where the ranks leave their addresses; not needed any more afterwards.
        rank: this one.
        who: a description of every rank, for messages.
        timeout: seconds that the others have to come.

    Raises:
        DistributedError: some did not come, cannot be reached, or the store has gone.
    """
    until = time.monotonic() + timeout
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=max(16, len(who)), dualstack_ipv6=both) as server:
        card = _Card(
            hosts=_own_hosts(store),
            port=server.getsockname()[1],
            token=secrets.token_hex(16),
            pid=os.getpid(),
            machine=_machine(),
        )
        try:
            store.set(f"{rank}", json.dumps(dataclasses.asdict(card)))
            cards = _cards(store, rank, who, until, timeout)
        except DistributedError:
            raise
        except RuntimeError as error:
            raise DistributedError(
                f"{who[rank]}: the store was lost while the ranks were meeting ({str(error).splitlines()[0]}); "
                "its host, mostly rank 0 or the launcher, has ended: see its own message"
            ) from error
        # Lower ranks are called first and in order; nobody waits for a circle: rank 0 calls no one, and a call is taken
        # into the listening socket's queue even while the called rank is still calling others.
        connections = [_call(peer, cards, rank, who, until) for peer in range(rank)]
        connections += _answer(server, cards, rank, who, until, timeout)
    return Connections(connections)


def _own_hosts(store: Store) -> list[str]:
    """Addresses at which other machines may reach this one: first the one that it uses towards the others' meeting."""
    hosts = []
    inner = getattr(store, "underlying_store", store)
    for remote in (os.environ.get("MASTER_ADDR"), getattr(inner, "host", None)):
        if remote:
            with contextlib.suppress(OSError):
                family, kind, _, _, address = socket.getaddrinfo(remote, 9, type=socket.SOCK_DGRAM)[0]
                with socket.socket(family, kind) as probe:
                    probe.connect(address)  # sends nothing: it asks which of our addresses would be used
                    hosts.append(probe.getsockname()[0])
    return list(dict.fromkeys([*hosts, socket.gethostname()]))


def _machine() -> str:
    """Equal for two processes that can see each other by number: one running system, one space of process numbers."""
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {numbers.readlink()}"
    return socket.gethostname()


def _cards(store: Store, rank: int, who: Sequence[str], until: float, timeout: float) -> dict[int, _Card]:
    missing = [peer for peer in range(len(who)) if peer != rank]
    while not store.check([f"{peer}" for peer in missing]):
        if time.monotonic() > until:
            missing = [peer for peer in missing if not store.check([f"{peer}"])]
            raise DistributedError(
                f"{_listed(missing, who)} did not come to the meeting of the {len(who)} ranks within {timeout:g} s; "
                "every rank has to make the same network; raise timeout= if they need longer"
            )
        time.sleep(0.01)
    return {peer: _Card(**json.loads(store.get(f"{peer}"))) for peer in range(len(who))}


def _listed(ranks: Sequence[int], who: Sequence[str]) -> str:
    return " and ".join(who[rank] for rank in ranks)


def _call(peer: int, cards: dict[int, _Card], rank: int, who: Sequence[str], until: float) -> Connection:
    """Connect to a lower rank, which answers with our own token if it is the one."""
    near = cards[peer].machine == cards[rank].machine
    failures = []
    for host in [*(["localhost"] if near else []), *cards[peer].hosts]:
        seconds = max(0.1, until - time.monotonic())
        try:
            connection = socket.create_connection((host, cards[peer].port), timeout=seconds)
        except OSError as error:
            failures.append(f"{host}: {error}")
            continue
        try:
            connection.sendall(json.dumps({"token": cards[peer].token, "rank": rank}).encode() + b"\n")
            if hmac.compare_digest(_greeting(connection).get("token", ""), cards[rank].token):
                return _connection(peer, connection, cards, rank)
            failures.append(f"{host}: another program answers there")
        except (OSError, ValueError) as error:
            failures.append(f"{host}: {error}")
        connection.close()
    raise DistributedError(
        f"{who[rank]} cannot connect to {who[peer]} at port {cards[peer].port} ({'; '.join(failures)}); it has ended "
        "(see its own message), or a firewall stands between them: gloo and NCCL need such connections as well"
    )


def _answer(
    server: socket.socket, cards: dict[int, _Card], rank: int, who: Sequence[str], until: float, timeout: float
) -> list[Connection]:
    """Accept the higher ranks, in the order in which they come."""
    connections: dict[int, Connection] = {}
    while len(connections) < len(who) - rank - 1:
        server.settimeout(max(0.01, until - time.monotonic()))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            missing = [peer for peer in range(rank + 1, len(who)) if peer not in connections]
            raise DistributedError(
                f"{_listed(missing, who)} did not connect to {who[rank]} within {timeout:g} s; see their own messages, "
                "or raise timeout="
            ) from None
        try:
            connection.settimeout(2.0)
            greeting = _greeting(connection)
            if not hmac.compare_digest(greeting.get("token", ""), cards[rank].token):
                raise ValueError("not of this run")
            peer = greeting["rank"]
            connection.sendall(json.dumps({"token": cards[peer].token}).encode() + b"\n")
            connections[peer] = _connection(peer, connection, cards, rank)
        except (OSError, ValueError, KeyError, AttributeError):
            connection.close()  # a stranger
    return list(connections.values())


def _greeting(connection: socket.socket) -> dict[str, Any]:
    """One short line, read byte by byte, so that nothing of the messages behind it is taken."""
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < 1000:
        byte = connection.recv(1)
        if not byte:
            raise ConnectionResetError("it closed the connection")
        data += byte
    greeting: dict[str, Any] = json.loads(data)
    return greeting


def _connection(peer: int, connection: socket.socket, cards: dict[int, _Card], rank: int) -> Connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    process = None
    if cards[peer].machine == cards[rank].machine and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # not allowed, or already gone: the connection will tell
            process = os.pidfd_open(cards[peer].pid)
    return Connection(peer, connection, process)
