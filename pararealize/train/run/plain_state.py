"""``state.json`` -> what of a training run's state is no tensor, checked against its schema and against itself."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from pararealize.errors import CheckpointError
from pararealize.manifest import STRICT, FileFact, read_document

from .score import Score

__all__ = ["PLAIN", "SCHEMA", "VERSION", "PlainState", "read_plain_state"]

PLAIN = "state.json"
SCHEMA, VERSION = "pararealize.run-state", 2

Word = Annotated[int, Field(ge=0, lt=2**32)]
Sum = tuple[float, float, float]  # of losses, of samples classified right, of samples


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerPlain:
    """What of an optimiser's state is no tensor.

    Attributes:
        groups: of parameters, with their settings.
        state: values by the parameter's name.
    """

    groups: list[dict[str, Any]]
    state: dict[str, dict[str, int | float | bool | None]]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HostRandom:
    """The states of Python's and NumPy's random numbers, see :mod:`pararealize.random_state`."""

    python: tuple[Literal[3], Annotated[list[Word], Field(min_length=625, max_length=625)], float | None]
    numpy: tuple[
        Literal["MT19937"],
        Annotated[list[Word], Field(min_length=624, max_length=624)],
        Annotated[int, Field(ge=0, le=624)],
        Literal[0, 1],
        float,
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlainState:
    """What of a training run's state is no tensor.

    Attributes:
        schema: of this file.
        version: of the schema.
        step: how many steps were taken.
        epoch: of them, whole ones.
        batch: steps of the epoch that has begun.
        recent: sums since the last row of the metrics.
        whole: sums since the epoch began.
        score: on the test part, where an epoch has ended.
        lines: what the files of lines had to be then, by their names.
        monitor: of multigrid, where there is one; it checks itself.
        world: how many ranks there were.
        optimizer: what of its state is no tensor.
        scaler: of the loss, where there is one.
        random: states of each rank.
    """

    schema: Literal["pararealize.run-state"]
    version: Literal[2]
    step: NonNegativeInt
    epoch: NonNegativeInt
    batch: NonNegativeInt
    recent: Sum
    whole: Sum
    score: Score | None
    lines: dict[str, FileFact]
    monitor: dict[str, Any] | None = None
    world: PositiveInt
    optimizer: OptimizerPlain
    scaler: dict[str, int | float] | None
    random: list[HostRandom]


_PLAIN = TypeAdapter(PlainState)


def read_plain_state(folder: Path) -> PlainState:
    """The plain part of a checkpoint.

    Raises:
        CheckpointError: there is none, it is of another version, has another form, or contradicts itself.
    """
    plain = read_document(folder / PLAIN, _PLAIN, schema=SCHEMA, version=VERSION)
    if len(plain.random) != plain.world:
        raise CheckpointError(
            f"{str(folder / PLAIN)!r} contradicts itself: there are random states of {len(plain.random)} ranks, and "
            f"{plain.world} ranks wrote it"
        )
    return plain
