"""The kinds of files, each a class in a file of its own, and how many cases of each the published table has."""

from __future__ import annotations

from collections.abc import Callable

from ..trial import Target
from .calibrations import Calibrations
from .commands import Commands
from .data_sets import DataSets
from .plans import Plans
from .run_folders import RunFolders
from .shards import Shards
from .timelines import Timelines
from .weights import Weights

__all__ = ["COUNTS", "TARGETS"]

TARGETS: dict[str, Callable[[], Target]] = {
    "plans": Plans,
    "timelines": Timelines,
    "calibrations": Calibrations,
    "plans by command": Commands,
    "data sets": DataSets,
    "run folders": RunFolders,
    "weights": Weights,
    "shards": Shards,
}
COUNTS = {
    "plans": 5000,
    "timelines": 500,
    "calibrations": 500,
    "plans by command": 300,
    "data sets": 500,
    "run folders": 2000,
    "weights": 1000,
    "shards": 500,
}
