"""A thread -> where its Python code stands, in words, and whether that is in a wait of torch.distributed.

A thread that hangs cannot say where. The watching thread can: it looks at the other's frames twice a second, which
costs microseconds. A rank that stands in a collective call of torch's is one that waits for others, also where nobody
said so: in a barrier of the user's own, or within a library that sends for itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from torch.distributed import distributed_c10d as c10d

__all__ = ["Position"]

_LIBRARY = str(Path(__file__).parents[2])
_COLLECTIVES = str(c10d.__file__)
_LONGEST = 240  # letters


class Position:
    """Where one thread stands, as it was last looked at.

    Attributes:
        text: the innermost line of the user's own code, and the line that it has called, if that is another.
        seconds: since when, at least, the thread has stood in one wait of torch.distributed; 0 where it stands in none.
    """

    def __init__(self) -> None:
        self.text, self.seconds = "", 0.0
        self._place: tuple[int, int] | None = None
        self._since = 0.0

    def look(self, thread: int) -> None:
        """Look at a thread, by its identity."""
        frames = list(_outwards(sys._current_frames().get(thread)))
        place = (id(frames[0]), frames[0].f_lasti) if frames and frames[0].f_code.co_filename == _COLLECTIVES else None
        now = time.monotonic()
        if place != self._place:
            self._place, self._since = place, now
        self.seconds = 0.0 if place is None else max(now - self._since, 1e-3)
        self.text = _words(frames)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _words(frames: list[FrameType]) -> str:
    """The innermost frame, and the innermost one that is neither this library's nor an installed one's."""
    if not frames:
        return ""
    theirs = next((frame for frame in frames if not _installed(frame.f_code.co_filename)), None)
    shown = [frames[0]] if theirs in (None, frames[0]) else [frames[0], theirs]
    lines = [_line(frame) for frame in shown if frame is not None]
    return ", called from ".join(lines)[:_LONGEST]


def _installed(name: str) -> bool:
    places = ("site-packages", "dist-packages", "/lib/python")
    return name.startswith((_LIBRARY, "<frozen")) or any(place in name for place in places)


def _line(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
