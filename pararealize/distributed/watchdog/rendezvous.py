"""Store, rank -> Connections: how the ranks find each other once, and connect each with every other one.

Every rank leaves a card in the store, twice: first on which machine it runs, then, once it knows where the others run,
where it listens. Ranks of one machine listen on its loopback interface alone, others on the one interface that leads to
the other machines. The higher rank of a pair calls the lower one, and each proves to the other that it has read the
other's token in the store: whoever cannot is a stranger and is turned away, whatever bytes it sends.

The store is needed only for that: afterwards nothing depends on the process that hosts it, whose death is the death of
one rank like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from pararealize.errors import DistributedError

from .connections import Connection, Connections

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["connect_ranks"]

_ANY = ("0.0.0.0", "::")  # noqa: S104 - what a socket that listens on all interfaces says
_ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR of Linux


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """What a rank leaves in the store.

    Attributes:
        hosts: addresses at which it may be reached.
        port: where it listens; 0 as long as it does not.
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
    card = _Card(hosts=_own_hosts(store), port=0, token=secrets.token_hex(16), pid=os.getpid(), machine=_machine())
    with contextlib.ExitStack() as stack:
        try:
            machines = _exchange(store, "machine", card, rank, who, until, timeout)
            server = stack.enter_context(_listen(machines, rank))
            host, port = server.getsockname()[:2]
            hosts = card.hosts if host in _ANY else [host]
            cards = _exchange(store, "", dataclasses.replace(card, hosts=hosts, port=port), rank, who, until, timeout)
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


def _listen(cards: dict[int, _Card], rank: int) -> socket.socket:
    """A listening socket on the one interface that the other ranks come by."""
    mine = cards[rank].machine
    remote = [host for card in cards.values() if card.machine != mine for host in card.hosts]
    backlog = max(16, len(cards))
    hosts = [_interface_address(), *map(_address_towards, remote)] if remote else ["127.0.0.1", "::1"]
    for host in dict.fromkeys(host for host in hosts if host is not None):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with contextlib.suppress(OSError):
            return socket.create_server((host, 0), family=family, backlog=backlog)
    # no route that this rank knows of: any interface, as the process groups' own stores do; strangers have no token
    return socket.create_server(("", 0), backlog=backlog)


def _interface_address() -> str | None:
    """The address of the interface that the user named for the process groups, where one is named."""
    for variable in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        name = os.environ.get(variable, "").split(",")[0].lstrip("^=")
        if name and fcntl is not None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                request = struct.pack("256s", name[:15].encode())
                return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _ADDRESS_OF_INTERFACE, request)[20:24])
    return None


def _own_hosts(store: Store) -> list[str]:
    """Addresses at which other machines may reach this one: first the one that it uses towards the others' meeting."""
    inner = getattr(store, "underlying_store", store)
    towards = filter(None, (os.environ.get("MASTER_ADDR"), getattr(inner, "host", None)))
    hosts = [_interface_address(), *map(_address_towards, towards)]
    return list(dict.fromkeys([*filter(None, hosts), socket.gethostname()]))


def _address_towards(remote: str) -> str | None:
    """Which of this machine's addresses is used towards another one; ``None`` where that is this machine itself."""
    with contextlib.suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(remote, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: it asks which of our addresses would be used
            host = str(probe.getsockname()[0])
            return None if host.startswith("127.") or host == "::1" else host
    return None


def _machine() -> str:
    """Equal for two processes that can see each other by number: one running system, one space of process numbers."""
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {numbers.readlink()}"
    return socket.gethostname()


def _exchange(
    store: Store, folder: str, card: _Card, rank: int, who: Sequence[str], until: float, timeout: float
) -> dict[int, _Card]:
    """Leave this rank's card in the store; those of all ranks, once they have come."""
    keys = [f"{folder}/{peer}" if folder else f"{peer}" for peer in range(len(who))]
    store.set(keys[rank], json.dumps(dataclasses.asdict(card)))
    others = [key for peer, key in enumerate(keys) if peer != rank]
    while not store.check(others):
        if time.monotonic() > until:
            missing = [peer for peer, key in enumerate(keys) if peer != rank and not store.check([key])]
            raise DistributedError(
                f"{_listed(missing, who)} did not come to the meeting of the {len(who)} ranks within {timeout:g} s; "
                "every rank has to make the same network; raise timeout= if they need longer"
            )
        time.sleep(0.01)
    return {peer: _Card(**json.loads(store.get(key))) for peer, key in enumerate(keys)}


def _listed(ranks: Sequence[int], who: Sequence[str]) -> str:
    return " and ".join(who[rank] for rank in ranks)


def _call(peer: int, cards: dict[int, _Card], rank: int, who: Sequence[str], until: float) -> Connection:
    """Connect to a lower rank, which answers with our own token if it is the one."""
    failures = []
    for host in cards[peer].hosts:
        seconds = max(0.1, until - time.monotonic())
        try:
            connection = socket.create_connection((host, cards[peer].port), timeout=seconds)
        except OSError as error:
            failures.append(f"{host}: {error}")
            continue
        try:
            connection.sendall(_greeting(cards[peer].token, rank))
            if _greeted(connection, cards[rank].token) == peer:
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
            peer = _greeted(connection, cards[rank].token)
            if peer not in cards or peer <= rank or peer in connections:
                raise ValueError("not one that has to call")
            connection.sendall(_greeting(cards[peer].token, rank))
            connections[peer] = _connection(peer, connection, cards, rank)
        except (OSError, ValueError):
            connection.close()  # a stranger
    return list(connections.values())


def _greeting(token: str, rank: int) -> bytes:
    """What a rank says first: the other one's token, and who it is."""
    return f"{token} {rank}\n".encode()


def _greeted(connection: socket.socket, token: str) -> int:
    """The rank that greets with this rank's token: one short line, read byte by byte, so that nothing behind is taken.

    It is no JSON: whatever a stranger sends is compared as bytes and never parsed.

    Raises:
        ValueError: it does not know the token.
        OSError: it said nothing, or not in time.
    """
    data = bytearray()
    longest = len(token) + 12
    until = time.monotonic() + 2.0  # in all: one byte a second would hold the others up
    while not data.endswith(b"\n") and len(data) < longest and time.monotonic() < until:
        byte = connection.recv(1)
        if not byte:
            raise ConnectionResetError("it closed the connection")
        data += byte
    secret, _, rank = bytes(data).partition(b" ")
    if not hmac.compare_digest(secret, token.encode()) or not rank.endswith(b"\n"):
        raise ValueError("another program answers there")
    return int(rank)


def _connection(peer: int, connection: socket.socket, cards: dict[int, _Card], rank: int) -> Connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    process = None
    if cards[peer].machine == cards[rank].machine and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # not allowed, or already gone: the connection will tell
            process = os.pidfd_open(cards[peer].pid)
    return Connection(peer, connection, process, cards[peer].pid)
