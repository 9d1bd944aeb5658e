"""What options of ``pararealize train`` choose among."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Amp", "Initialise", "Optimizer", "Schedule"]


class Optimizer(StrEnum):
    """Optimisers."""

    sgd = "sgd"
    adamw = "adamw"


class Schedule(StrEnum):
    """Schedules of the learning rate."""

    steps = "steps"
    cosine = "cosine"
    constant = "constant"


class Amp(StrEnum):
    """Precisions of autocast."""

    off = "off"
    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Initialise(StrEnum):
    """How weights start."""

    he = "he"
    none = "none"
