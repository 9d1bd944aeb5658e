"""What a rank does in a step -> told to the watchdog in words, and written to a recording where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.plan.actions import Direction
from pararealize.plan.recording import StepRecording

__all__ = ["Activity"]

_WORDS = {
    "adapter": "C^{j}",
    "fine": "g^{j}",
    "coarse": "F^{i}",
    "difference": "y_{j} - x_{j}",
    "sum": "s_{j}",
    "send": "send z_{j}",
    "receive": "receive",
    "send sum": "send s_{j}",
    "receive sum": "receive s_{j}",
    "send end": "send w_{before}",
    "receive end": "receive w_{before}",
    "all-reduce": "sum w_{m} over ranks",
}


class Activity:
    """What one rank does.

    Args:
        watch: hears of each action before it begins, so that a hang can be named.

    Attributes:
        recording: gets a row for each action, while it is set.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.recording: StepRecording | None = None

    @contextlib.contextmanager
    def during(self, action: str, j: int, direction: Direction = "forward", m: int = 0) -> Iterator[None]:
        """Around an action on segment j of window m: see :class:`~pararealize.plan.recording.RecordedAction`."""
        window = f"{m}," if m else ""
        word = _WORDS.get(action, action).format(j=f"{window}{j}", i=f"{window}{j - 1}", m=m, before=m - 1)
        self.watch.doing(f"{word} {direction}")
        if self.recording is None:
            yield
        else:
            with self.recording.during(j, action, direction, m):
                yield
