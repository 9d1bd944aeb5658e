"""Work that may come up at any moment -> done by the thread that it belongs to, when that is in no call.

The garbage collector lets go of a stage wherever it happens to run: in a watching thread, in a thread of a data loader,
within a step of another network or its backward pass. What a stage holds open is torch's, such as process groups, and
is not to be taken down there: only by the thread that uses it, between two of its calls.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator

__all__ = ["in_call", "when_in_no_call"]


class _Depth(threading.local):
    calls = 0  # that this thread is in


_depth = _Depth()
# with the process and the thread that each belongs to; appending takes no lock
_waiting: deque[tuple[int, int, Callable[[], None]]] = deque()


def when_in_no_call(thread: int, work: Callable[[], None]) -> None:
    """Do some work at once where this is its thread, outside of every call; else when that thread comes there next.

    Args:
        thread: its identity. Where it has ended, the next thread that comes out of a call does the work.
        work: must not raise.
    """
    if thread == threading.get_ident() and not _depth.calls:
        work()
    else:
        _waiting.append((os.getpid(), thread, work))


@contextlib.contextmanager
def in_call() -> Iterator[None]:
    """Around a call; what has been waiting is done before it and after it."""
    if not _depth.calls and _waiting:
        _work()
    _depth.calls += 1
    try:
        yield
    finally:
        _depth.calls -= 1
        if not _depth.calls and _waiting:
            _work()


def _work() -> None:
    here, alive = threading.get_ident(), {thread.ident for thread in threading.enumerate()}
    for _ in range(len(_waiting)):
        process, thread, work = _waiting.popleft()
        if process != os.getpid():  # this one was forked from it, and has no part in it
            continue
        if thread == here or thread not in alive:
            work()
        else:
            _waiting.append((process, thread, work))
