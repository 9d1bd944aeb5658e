"""Store, rank -> one connection to every other rank, over which the watch's short messages go and a death shows.

The store is needed only while the ranks meet. After that, nothing here depends on a host of it: its death is the death
of one rank like any other. The connections are apart from those of the process groups, so that a wait in gloo or NCCL
holds up no message, and a connection that closes means that its process has ended: the system closes it, however the
process died. On one machine the process itself is watched as well, where the system can (Linux): connections can
be kept open by what the dead process had forked, such as the workers of a data loader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import os
import secrets
import selectors
import socket
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch.distributed.distributed_c10d import Store

from pararealize.errors import DistributedError

__all__ = ["Links", "Message", "meet"]

Message: TypeAlias = dict[str, Any]  # "is" says which: beat, failure, bye; gone is made here, where a connection ends

_FULL = 1 << 16  # bytes that may wait for a rank that does not read; a stopped one needs no more heartbeats
_LINE = 1 << 16  # bytes that a message may have


@dataclasses.dataclass(slots=True)
class _Link:
    rank: int
    socket: socket.socket
    process: int | None  # a descriptor that becomes readable when the process ends
    received: bytearray = dataclasses.field(default_factory=bytearray)
    unsent: bytearray = dataclasses.field(default_factory=bytearray)


_open: weakref.WeakSet[Links] = weakref.WeakSet()


class Links:
    """The connections of one rank to all others. One thread polls, sends and closes; any thread may wake it."""

    def __init__(self, links: Sequence[_Link]) -> None:
        self._links = {link.rank: link for link in links}
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for link in links:
            link.socket.setblocking(False)
            self._selector.register(link.socket, selectors.EVENT_READ, link)
            if link.process is not None:
                self._selector.register(link.process, selectors.EVENT_READ, link)
        self._gone: list[tuple[int, Message]] = []
        self.closed = False
        _open.add(self)

    def poll(self, seconds: float) -> list[tuple[int, Message]]:
        """Wait so long at most; what has come, with the rank it came from, in the order in which each sent it."""
        found: list[tuple[int, Message]] = []
        for key, _ in self._selector.select(max(0.0, seconds)):
            link: _Link | None = key.data
            if link is None:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif link.rank in self._links:  # else an event of this same round has ended it
                found += self._read(link, ended=key.fileobj == link.process)
        gone, self._gone = self._gone, []
        return found + gone

    def _read(self, link: _Link, *, ended: bool) -> list[tuple[int, Message]]:
        """All that a connection holds; last words come before the news that the process is gone."""
        how = "died (its process is gone)" if ended else ""
        try:
            while data := link.socket.recv(1 << 16):
                link.received += data
            how = "died (its process is gone)"
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            how = "died (its process is gone)"
        except OSError as error:
            how = f"cannot be reached any more ({error.strerror or error})"
        *lines, rest = bytes(link.received).split(b"\n")
        link.received[:] = rest[-_LINE:]
        found = [(link.rank, json.loads(line)) for line in lines]
        if how:
            self._drop(link)
            found.append((link.rank, {"is": "gone", "how": how}))
        return found

    def _drop(self, link: _Link) -> None:
        del self._links[link.rank]
        self._selector.unregister(link.socket)
        link.socket.close()
        if link.process is not None:
            self._selector.unregister(link.process)
            os.close(link.process)

    def send(self, message: Message) -> None:
        """To all, without waiting: what a rank does not read is kept for it, and heartbeats are left out then."""
        line = json.dumps(message).encode() + b"\n"
        for link in list(self._links.values()):
            if not link.unsent or (message["is"] != "beat" and len(link.unsent) < _FULL):
                link.unsent += line
            try:
                del link.unsent[: link.socket.send(link.unsent)]
            except BlockingIOError:
                pass
            except OSError:
                self._gone += self._read(link, ended=True)

    def wake(self) -> None:
        """Let :meth:`poll` return at once."""
        with contextlib.suppress(OSError):
            self._waker.send(b"w")

    def close(self) -> None:
        """Close every connection, in this process only."""
        self.closed = True
        for link in self._links.values():
            link.socket.close()
            if link.process is not None:
                os.close(link.process)
        self._links.clear()
        self._selector.close()
        self._woken.close()
        self._waker.close()


def _close_in_child() -> None:
    """A forked process must not keep connections open that say whether its parent lives."""
    for links in list(_open):
        if not links.closed:
            links.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


# ------------------------------------------------------------------------------------------------------------- meeting


def meet(store: Store, rank: int, who: Sequence[str], timeout: float) -> Links:
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
    with _listen(len(who)) as server:
        token = secrets.token_hex(16)  # so that a stranger, or another run's rank at that port, is told apart
        card = {"hosts": _own_hosts(store), "port": server.getsockname()[1], "token": token, "pid": os.getpid(),
                "machine": _machine()}  # fmt: skip
        try:
            store.set(f"{rank}", json.dumps(card))
            cards = _cards(store, rank, who, until, timeout)
        except DistributedError:
            raise
        except RuntimeError as error:
            raise DistributedError(
                f"{who[rank]}: the store was lost while the ranks were meeting ({str(error).splitlines()[0]}); "
                "its host, mostly rank 0 or the launcher, has ended: see its own message"
            ) from error
        links = [_call(j, cards, rank, who, until) for j in range(rank)]
        links += _answer(server, cards, rank, who, until, timeout)
    return Links(links)


def _listen(size: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, backlog=max(16, size), dualstack_ipv6=both)


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


def _cards(store: Store, rank: int, who: Sequence[str], until: float, timeout: float) -> dict[int, Message]:
    missing = [j for j in range(len(who)) if j != rank]
    while not store.check([f"{j}" for j in missing]):
        if time.monotonic() > until:
            missing = [j for j in missing if not store.check([f"{j}"])]
            raise DistributedError(
                f"{_listed(missing, who)} did not come to the meeting of the {len(who)} ranks within {timeout:g} s; "
                "every rank has to make the same network; raise timeout= if they need longer"
            )
        time.sleep(0.01)
    return {j: json.loads(store.get(f"{j}")) for j in range(len(who))}


def _listed(ranks: Sequence[int], who: Sequence[str]) -> str:
    return " and ".join(who[j] for j in ranks)


def _call(j: int, cards: dict[int, Message], rank: int, who: Sequence[str], until: float) -> _Link:
    """Connect to a lower rank, which answers with our own token if it is the one."""
    near = cards[j]["machine"] == cards[rank]["machine"]
    tried = []
    for host in [*(["localhost"] if near else []), *cards[j]["hosts"]]:
        left = max(0.1, until - time.monotonic())
        try:
            connection = socket.create_connection((host, cards[j]["port"]), timeout=left)
        except OSError as error:
            tried.append(f"{host}: {error}")
            continue
        try:
            connection.sendall(json.dumps({"token": cards[j]["token"], "rank": rank}).encode() + b"\n")
            if hmac.compare_digest(_line(connection).get("token", ""), cards[rank]["token"]):
                return _link(j, connection, cards, rank)
            tried.append(f"{host}: another program answers there")
        except (OSError, ValueError) as error:
            tried.append(f"{host}: {error}")
        connection.close()
    raise DistributedError(
        f"{who[rank]} cannot connect to {who[j]} at port {cards[j]['port']} ({'; '.join(tried)}); it has ended (see "
        "its own message), or a firewall stands between them: gloo and NCCL need such connections as well"
    )


def _answer(
    server: socket.socket, cards: dict[int, Message], rank: int, who: Sequence[str], until: float, timeout: float
) -> list[_Link]:
    """Accept the higher ranks, in the order in which they come."""
    links: dict[int, _Link] = {}
    while len(links) < len(who) - rank - 1:
        server.settimeout(max(0.01, until - time.monotonic()))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            missing = [j for j in range(rank + 1, len(who)) if j not in links]
            raise DistributedError(
                f"{_listed(missing, who)} did not connect to {who[rank]} within {timeout:g} s; see their own messages, "
                "or raise timeout="
            ) from None
        try:
            connection.settimeout(2.0)
            hello = _line(connection)
            if not hmac.compare_digest(hello.get("token", ""), cards[rank]["token"]):
                raise ValueError("not of this run")
            connection.sendall(json.dumps({"token": cards[hello["rank"]]["token"]}).encode() + b"\n")
            links[hello["rank"]] = _link(hello["rank"], connection, cards, rank)
        except (OSError, ValueError, KeyError, AttributeError):
            connection.close()  # a stranger
    return list(links.values())


def _line(connection: socket.socket) -> Message:
    """One short message, byte by byte, so that nothing of what follows is taken."""
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < 1000:
        byte = connection.recv(1)
        if not byte:
            raise ConnectionResetError("it closed the connection")
        data += byte
    message: Message = json.loads(data)
    return message


def _link(j: int, connection: socket.socket, cards: dict[int, Message], rank: int) -> _Link:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    process = None
    if cards[j]["machine"] == cards[rank]["machine"] and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # not allowed, or already gone: the connection will tell
            process = os.pidfd_open(cards[j]["pid"])
    return _Link(j, connection, process)
