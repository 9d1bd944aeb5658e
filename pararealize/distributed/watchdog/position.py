"""A thread -> where its Python code stands, in words, and whether that is in a wait of torch.distributed.

A thread that hangs cannot say where. The watching thread can ask the interpreter, which costs about a millisecond.
A rank that stands in a collective call of torch's is one that waits for others, also where nobody said so: in a barrier
of the user's own, or within a library that sends for itself.

The stacks come from :mod:`faulthandler` as text. Frames of another thread (``sys._current_frames()``, ``f_back``) are
not touched: Python 3.11 makes each such object when it is asked for, which may collect garbage, hence run Python code
that lets the other thread go on and leave the very frame that is being read (python/cpython#111363, and #106883 for a
deadlock); and whoever holds a frame keeps its tensors alive, and frees them in the wrong thread.
``faulthandler`` makes no objects and does not let go of the interpreter's lock before it is done.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from torch.distributed import distributed_c10d as c10d

__all__ = ["Position", "ThreadId"]

_LIBRARY = str(Path(__file__).parents[2])
_COLLECTIVES = str(c10d.__file__)
_LONGEST = 240  # letters
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\S+) in (?P<function>.*)')


@dataclass(frozen=True, slots=True)
class ThreadId:
    """A thread, as Python and as the system number it."""

    identity: int
    native: int

    @classmethod
    def current(cls) -> ThreadId:
        """The thread that asks."""
        return cls(threading.get_ident(), threading.get_native_id())


@dataclass(frozen=True, slots=True)
class _Frame:
    file: str
    line: str
    function: str

    def __str__(self) -> str:
        path = Path(self.file)
        return f"{path.parent.name}/{path.name}:{self.line} in {self.function}"

    @property
    def is_installed(self) -> bool:
        places = ("site-packages", "dist-packages", "/lib/python")
        return self.file.startswith((_LIBRARY, "<frozen")) or any(place in self.file for place in places)


class Position:
    """Where one thread stands, as it was last looked at.

    Attributes:
        text: the innermost line of the user's own code, and the line that it has called, if that is another.
        seconds: since when, at least, the thread has stood in one wait of torch.distributed; 0 where it stands in none.
    """

    def __init__(self) -> None:
        self.text, self.seconds = "", 0.0
        self._wait: tuple[list[_Frame], str] | None = None
        self._since = 0.0

    def forget(self) -> None:
        """The thread goes on: where it stood is of no account any more."""
        self.text, self.seconds, self._wait = "", 0.0, None

    def look(self, thread: ThreadId) -> None:
        """Look at a thread."""
        frames = _stack_of(thread.identity)
        switches = _switches(thread.native)
        waits = bool(frames) and frames[0].file == _COLLECTIVES and switches != ""
        # the same lines, and the thread has not run in between: else it may be the next call of a loop
        wait = (frames, switches) if waits else None
        now = time.monotonic()
        if wait != self._wait:
            self._wait, self._since = wait, now
        self.seconds = 0.0 if wait is None else max(now - self._since, 1e-3)
        self.text = _words(frames)


def _stack_of(identity: int) -> list[_Frame]:
    """The innermost hundred frames of a thread, innermost first; none of one that is not there."""
    with _scratch_file() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    head = re.compile(rf"^(?:Current thread|Thread) 0x0*{identity:x}\b.*$", re.MULTILINE | re.IGNORECASE)
    if (match := head.search(text)) is None:
        return []
    stack = text[match.end() :].lstrip("\n").partition("\n\n")[0]
    return [_Frame(**found.groupdict()) for found in map(_FRAME.fullmatch, stack.splitlines()) if found is not None]


def _scratch_file() -> IO[bytes]:
    """A file in memory, where the system has such; faulthandler writes to nothing else."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("pararealize-stacks"), "w+b", buffering=0)  # noqa: PTH123 (the caller closes it)
    return tempfile.TemporaryFile(buffering=0)


def _switches(native: int) -> str:
    """How often a thread has given up the processor, or lost it; empty where the system does not say."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/self/task/{native}/status").read_text()
        return " ".join(re.findall(r"^\w*voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE))
    return ""


def _words(frames: list[_Frame]) -> str:
    """The innermost frame, and the innermost one that is neither this library's nor an installed one's."""
    if not frames:
        return ""
    theirs = next((frame for frame in frames if not frame.is_installed), frames[0])
    shown = [frames[0]] if theirs is frames[0] else [frames[0], theirs]
    return ", called from ".join(map(str, shown))[:_LONGEST]
