"""The groups that the options of ``pararealize train`` stand in, and what they choose among."""

from __future__ import annotations

from enum import StrEnum
from functools import partial

import typer

__all__ = ["RUN", "Amp", "Initialise", "Optimizer", "Schedule", "of_data", "of_multigrid", "of_recipe", "of_run"]

RUN = "The run"

of_multigrid = partial(typer.Option, rich_help_panel="Methods multigrid and oneshot")
of_data = partial(typer.Option, rich_help_panel="The data")
of_recipe = partial(typer.Option, rich_help_panel="The recipe")
of_run = partial(typer.Option, rich_help_panel=RUN)


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
