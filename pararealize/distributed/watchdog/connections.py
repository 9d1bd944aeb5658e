"""One connection from a rank to every other rank: short messages come and go over it, and a death shows.

The connections are apart from those of the process groups, so that a wait in gloo or NCCL holds up no message; and a
connection that closes means that its process has ended: the system closes it, however the process died. On one machine
the process itself is watched as well, where the system can (Linux): connections can be kept open by what the dead
process had forked, such as the workers of a data loader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import socket
import weakref
from collections.abc import Sequence

from .heartbeat import Heartbeat, Loss, Message, decode, encode

__all__ = ["Connection", "Connections"]

_FULL = 1 << 16  # bytes that may wait for a rank that does not read; a stopped one needs no more heartbeats
_LINE = 1 << 16  # bytes that a message may have
_DIED = "died (its process is gone)"


@dataclasses.dataclass(slots=True)
class Connection:
    """A connection to one rank.

    Attributes:
        rank: that rank.
        socket: connected to it.
        process: a descriptor that becomes readable when its process ends, where there is one.
        received: bytes of a line that is not complete.
        unsent: bytes that the rank has not read yet.
    """

    rank: int
    socket: socket.socket
    process: int | None
    received: bytearray = dataclasses.field(default_factory=bytearray)
    unsent: bytearray = dataclasses.field(default_factory=bytearray)


_open: weakref.WeakSet[Connections] = weakref.WeakSet()


class Connections:
    """The connections of one rank to all others. One thread polls, sends and closes; any thread may wake it."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = {connection.rank: connection for connection in connections}
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for connection in connections:
            connection.socket.setblocking(False)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            if connection.process is not None:
                self._selector.register(connection.process, selectors.EVENT_READ, connection)
        self._unreported: list[tuple[int, Message | Loss]] = []  # what a failed send has read
        self.closed = False
        _open.add(self)

    def poll(self, seconds: float) -> list[tuple[int, Message | Loss]]:
        """Wait so long at most; what has come, with the rank it came from, in the order in which each sent it."""
        messages: list[tuple[int, Message | Loss]] = []
        for key, _ in self._selector.select(max(0.0, seconds)):
            connection: Connection | None = key.data
            if connection is None:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif connection.rank in self._connections:  # else an event of this same round has ended it
                messages += self._read(connection, ended=key.fileobj == connection.process)
        unreported, self._unreported = self._unreported, []
        return messages + unreported

    def _read(self, connection: Connection, *, ended: bool) -> list[tuple[int, Message | Loss]]:
        """All that a connection holds; last words come before the news that the process is gone."""
        how = _DIED if ended else ""
        try:
            while data := connection.socket.recv(1 << 16):
                connection.received += data
            how = _DIED
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            how = _DIED
        except OSError as error:
            how = f"cannot be reached any more ({error.strerror or error})"
        *lines, rest = bytes(connection.received).split(b"\n")
        connection.received[:] = rest[-_LINE:]
        messages: list[tuple[int, Message | Loss]] = [(connection.rank, decode(line)) for line in lines]
        if how:
            self._drop(connection)
            messages.append((connection.rank, Loss(how)))
        return messages

    def _drop(self, connection: Connection) -> None:
        del self._connections[connection.rank]
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.process is not None:
            self._selector.unregister(connection.process)
            os.close(connection.process)

    def send(self, message: Message) -> None:
        """To all, without waiting: what a rank does not read is kept for it, and heartbeats are left out then."""
        line = encode(message)
        for connection in list(self._connections.values()):
            urgent = not isinstance(message, Heartbeat) and len(connection.unsent) < _FULL
            if not connection.unsent or urgent:
                connection.unsent += line
            try:
                del connection.unsent[: connection.socket.send(connection.unsent)]
            except BlockingIOError:
                pass
            except OSError:
                self._unreported += self._read(connection, ended=True)

    def wake(self) -> None:
        """Let :meth:`poll` return at once."""
        with contextlib.suppress(OSError):
            self._waker.send(b"w")

    def close(self) -> None:
        """Close every connection, in this process only."""
        self.closed = True
        for connection in self._connections.values():
            connection.socket.close()
            if connection.process is not None:
                os.close(connection.process)
        self._connections.clear()
        self._selector.close()
        self._woken.close()
        self._waker.close()


def _close_in_child() -> None:
    """A forked process must not keep connections open that say whether its parent lives."""
    for connections in list(_open):
        if not connections.closed:
            connections.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
