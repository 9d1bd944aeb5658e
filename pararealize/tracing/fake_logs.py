"""What torch logs of fake tensors, kept off stderr while a recording runs: errors are raised as well, and explained.

``FakeTensorMode`` logs the traceback of every operation that its meta kernel refuses, also where the model itself
refuses the inputs. The filter drops these records of the thread that records, and of no other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

__all__ = ["without_fake_logs"]

_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")
_recording = threading.local()


@contextlib.contextmanager
def without_fake_logs() -> Iterator[None]:
    """Within it, this thread's fake tensors log nothing."""
    if _drops_none not in _LOGGER.filters:  # torch's own set-up of its loggers may have taken it away
        _LOGGER.addFilter(_drops_none)
    before = getattr(_recording, "depth", 0)
    _recording.depth = before + 1
    try:
        yield
    finally:
        _recording.depth = before


def _drops_none(record: logging.LogRecord) -> bool:
    """Whether a record is logged: unless its own thread, which is the one that asks, records."""
    return not getattr(_recording, "depth", 0) or record.levelno < logging.WARNING
