"""The kinds of files, each a class in a file of its own, and how many cases of each the published table has."""

from __future__ import annotations

from collections.abc import Callable

from ..trial import Target
from .calibrations import Calibrations
from .plans import Plans
from .timelines import Timelines

__all__ = ["COUNTS", "TARGETS"]

TARGETS: dict[str, Callable[[], Target]] = {
    "plans": Plans,
    "timelines": Timelines,
    "calibrations": Calibrations,
}
COUNTS = {"plans": 5000, "timelines": 500, "calibrations": 500}
