"""One connection from a rank to every other rank: short messages come and go over it, and a death shows.

The connections are apart from those of the process groups, so that a wait in gloo or NCCL holds up no message; and a
connection that closes means that its process has ended: the system closes it, however the process died. On one machine
the process itself is watched as well, where the system can (Linux): connections can be kept open by what the dead
process had forked, such as the workers of a data loader. The exit status, which stands in ``/proc`` until the parent
asks for it, says more than that the process is gone. A rank that said goodbye is watched a little longer: one that then
exits with a status has not left in good order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import selectors
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from .heartbeat import Farewell, Heartbeat, Loss, Message, decode, encode

__all__ = ["Connection", "Connections"]

_FULL = 1 << 16  # bytes that may wait for a rank that does not read; a stopped one needs no more heartbeats
_LINE = 1 << 16  # bytes that a message may have
_DIED = "died (its process is gone)"
_ENDING = 0.05  # seconds in which a process that has closed its connections ends
_GET_INFO, _EXIT_INFO = 0xC040FF0B, 1 << 3  # PIDFD_GET_INFO and PIDFD_INFO_EXIT of linux/pidfd.h


@dataclasses.dataclass(slots=True)
class Connection:
    """A connection to one rank.

    Attributes:
        rank: that rank.
        socket: connected to it.
        process: a descriptor that becomes readable when its process ends, where there is one.
        pid: the number of that process.
        received: bytes of a line that is not complete.
        unsent: bytes that the rank has not read yet.
        leaves: whether it has said goodbye.
    """

    rank: int
    socket: socket.socket
    process: int | None
    pid: int = 0
    received: bytearray = dataclasses.field(default_factory=bytearray)
    unsent: bytearray = dataclasses.field(default_factory=bytearray)
    leaves: bool = False


_open: weakref.WeakSet[Connections] = weakref.WeakSet()


class Connections:
    """The connections of one rank to all others.

    One thread polls, sends and closes; any thread may wake it, or send to some ranks.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = {connection.rank: connection for connection in connections}
        self._leaving: dict[int, Connection] = {}  # that said goodbye, and whose processes have not ended yet
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
        self._sending = threading.Lock()  # so that no line is sent within another one
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
            elif connection.rank in self._leaving and key.fileobj == connection.process:
                messages.append((connection.rank, self._end(connection, _DIED)))
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
        connection.leaves |= any(isinstance(message, Farewell) for _, message in messages)
        if how:
            self._drop(connection)
            if connection.leaves and connection.process is not None and not ended:
                self._leaving[connection.rank] = connection
            else:
                messages.append((connection.rank, self._end(connection, how)))
        return messages

    def _drop(self, connection: Connection) -> None:
        del self._connections[connection.rank]
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _end(self, connection: Connection, how: str) -> Loss:
        """How a rank has ended whose connection is closed."""
        self._leaving.pop(connection.rank, None)
        if connection.process is None:
            return Loss(how)
        status = None
        if select.select([connection.process], [], [], _ENDING)[0]:  # sockets close before the process has ended
            status = _exit_status(connection.process, connection.pid)
        self._selector.unregister(connection.process)
        os.close(connection.process)
        connection.process = None
        return Loss(how if status is None or how != _DIED else f"died (its process is gone, {_words(status)})", status)

    def send(self, message: Message) -> None:
        """To all, without waiting: what a rank does not read is kept for it, and heartbeats are left out then."""
        line = encode(message)
        for connection in list(self._connections.values()):
            urgent = not isinstance(message, Heartbeat) and len(connection.unsent) < _FULL
            try:
                self._send(connection, line if not connection.unsent or urgent else b"")
            except OSError:
                self._unreported += self._read(connection, ended=True)

    def send_to(self, ranks: Iterable[int], message: Message) -> None:
        """To some ranks, from any thread, without waiting; of a connection that has ended, polling will tell."""
        line = encode(message)
        for rank in ranks:
            if (connection := self._connections.get(rank)) is not None:
                with contextlib.suppress(OSError):
                    self._send(connection, line)

    def _send(self, connection: Connection, line: bytes) -> None:
        with self._sending:
            connection.unsent += line
            with contextlib.suppress(BlockingIOError):
                del connection.unsent[: connection.socket.send(connection.unsent)]

    def is_ending(self, rank: int) -> bool:
        """Whether a rank has said goodbye, and its process has not ended yet."""
        return rank in self._leaving

    def wake(self) -> None:
        """Let :meth:`poll` return at once."""
        with contextlib.suppress(OSError):
            self._waker.send(b"w")

    def close(self) -> None:
        """Close every connection, in this process only."""
        self.closed = True
        for connection in (*self._connections.values(), *self._leaving.values()):
            connection.socket.close()
            if connection.process is not None:
                os.close(connection.process)
        self._connections.clear()
        self._leaving.clear()
        self._selector.close()
        self._woken.close()
        self._waker.close()


def _exit_status(process: int, pid: int) -> int | None:
    """Of a process that has ended, by its descriptor and its number; a negative number is a signal."""
    code = None
    with contextlib.suppress(OSError, ValueError, IndexError):  # as long as its parent has not asked
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        code = int(fields[48]) if state == b"Z" else None  # exit_code in proc_pid_stat(5)
    if code is None and fcntl is not None:
        with contextlib.suppress(OSError):  # afterwards, on Linux 6.15 and later
            info = bytearray(_EXIT_INFO.to_bytes(8, sys.byteorder) + bytes(56))  # struct pidfd_info of linux/pidfd.h
            fcntl.ioctl(process, _GET_INFO, info)
            if int.from_bytes(info[:8], sys.byteorder) & _EXIT_INFO:
                code = int.from_bytes(info[60:64], sys.byteorder)
    if code is None:
        return None
    return -(code & 0x7F) if code & 0x7F else code >> 8  # as waitpid gives it


def _words(status: int) -> str:
    if status >= 0:
        return f"with exit status {status}"
    return f"killed by {signal.Signals(-status).name if -status in set(signal.Signals) else f'signal {-status}'}"


def _close_in_child() -> None:
    """A forked process must not keep connections open that say whether its parent lives."""
    for connections in list(_open):
        if not connections.closed:
            connections.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
