"""A file -> the right to write beside it, which one process has at a time and loses with its end, however it ends.

The lock is the system's own (``flock``), which a process cannot leave behind. The file says who has it, for the error
that others get. Where a file system has no such locks, what the file says decides: a process of this machine that has
ended is passed over, and one of another machine is not.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from pararealize.errors import OutputError
from pararealize.files import check_name, kind_of, read_file

__all__ = ["FolderLock"]

PATIENCE = 3.0  # seconds that a process which is being ended gets until it has let go
# A forked child shares the locks of its parent, and would hold them as long as it lives: it gives its copies up.
_handles: set[int] = set()
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class FolderLock:
    """The lock of a folder, in the process that writes into it.

    Args:
        path: of the lock's file, in the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputError: another process has it, or the same process a second time; says which.
            OSError: the file cannot be written, or something else stands in its place.
        """
        until = time.monotonic() + PATIENCE
        while not self._try():
            if time.monotonic() >= until:
                raise OutputError(
                    f"{str(self.path.parent)!r} is in use: {_holder(self._read())} writes into it; wait for it or end "
                    "it, or name another folder"
                )
            time.sleep(0.05)

    def release(self) -> None:
        """Give the lock back, and remove its file."""
        handle, self._handle = self._handle, None
        if handle is None or handle not in _handles:  # of a parent process
            return
        with contextlib.suppress(OSError):
            if _same_file(handle, self.path):  # not where the folder was moved, or the file replaced
                self.path.unlink()
        _handles.discard(handle)
        os.close(handle)

    def _try(self) -> bool:
        if kind_of(self.path) not in (None, "file"):
            raise OSError(errno.EINVAL, f"{self.path.name} is a {kind_of(self.path)} and no file")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(check_name(self.path), flags, 0o666)
        try:
            locked = _lock(handle)
            if locked is None:  # the file system has no locks
                locked = not _is_alive(self._read())
            if locked and _same_file(handle, self.path):  # else who had it before has removed the file
                os.ftruncate(handle, 0)
                os.pwrite(handle, (json.dumps(_this_process()) + "\n").encode(), 0)
                self._handle = handle
        finally:
            if self._handle != handle:
                os.close(handle)
        if self._handle is None:
            return False
        _handles.add(self._handle)
        return True

    def _read(self) -> dict[str, Any]:
        """Who has the lock, as far as the file says so."""
        try:
            content = json.loads(read_file(self.path, most=4096))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


def _lock(handle: int) -> bool | None:
    """Whether the lock could be taken; ``None`` where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "began": _beginning(pid)}


def _beginning(pid: int) -> str:
    """When a process began, as the system counts, so that another one of the same number is told from it."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return ""


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process that a lock's file names may still write; what a damaged file says counts as nothing."""
    pid, host = holder.get("pid"), holder.get("host")
    if not isinstance(pid, int) or not isinstance(host, str) or not 0 < pid < 2**31:
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return holder.get("began") in ("", _beginning(pid))


def _holder(content: dict[str, Any]) -> str:
    pid, host = content.get("pid"), content.get("host")
    if not isinstance(pid, int) or not isinstance(host, str):
        return "another process"
    return f"process {pid} on {ascii(host[:80])[1:-1]}"


def _close_in_child() -> None:
    while _handles:
        with contextlib.suppress(OSError):
            os.close(_handles.pop())


os.register_at_fork(after_in_child=_close_in_child)
