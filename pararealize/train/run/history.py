"""What a training run measures -> rows for steps, for epochs, for what a monitor changed; as JSON lines and text.

:data:`Row` is one of three kinds of values, and :class:`History` all of a run in order.
"""

import dataclasses
import json
import math
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pararealize.errors import CheckpointError
from pararealize.manifest import faults_of_schema, unique_keys
from pararealize.multigrid.monitor import Event
from pararealize.plan.json_text import finite
from pararealize.table import aligned

from .score import Score

__all__ = ["EpochRow", "History", "Row", "StepRow", "from_line", "to_line"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """Means over the steps since the row before.

    Attributes:
        step: number of the last of them, from 1.
        epoch: its number, from 1.
        lr: learning rate of the last of them.
        loss: mean over their samples, as trained (labels smoothed where asked for).
        error: share of their samples classified wrong.
        gradient: norm of all gradients together in the last of them, before clipping; ``None`` where it was not finite
            and a scaler left the step out.
    """

    step: int
    epoch: int
    lr: float
    loss: float
    error: float
    gradient: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """One epoch: means over its training batches, each at the weights of its step, and the test part after it.

    Attributes:
        step: number of its last step, from 1.
        epoch: its number, from 1.
        lr: learning rate of its last step.
        loss: mean over its samples, as trained.
        error: share of its samples classified wrong.
        test_loss: mean cross-entropy on the test part.
        test_error: share of the test part classified wrong.
    """

    step: int
    epoch: int
    lr: float
    loss: float
    error: float
    test_loss: float
    test_error: float


Row = StepRow | EpochRow | Event
KINDS: dict[str, type[Row]] = {"step": StepRow, "epoch": EpochRow, "event": Event}
_ROWS: dict[str, TypeAdapter[Row]] = {kind: TypeAdapter(row) for kind, row in KINDS.items()}


@dataclasses.dataclass(slots=True)
class History:
    """The rows of a run, in order.

    Attributes:
        rows: of steps, of epochs, and what a monitor of multigrid iterations changed.
        score: on the test part after the last epoch; ``None`` before the first has ended.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    score: Score | None = None

    @property
    def steps(self) -> list[StepRow]:
        """The rows of steps."""
        return [row for row in self.rows if isinstance(row, StepRow)]

    @property
    def epochs(self) -> list[EpochRow]:
        """The rows of epochs."""
        return [row for row in self.rows if isinstance(row, EpochRow)]

    @property
    def events(self) -> list[Event]:
        """What a monitor changed."""
        return [row for row in self.rows if isinstance(row, Event)]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("epoch", "step", "lr", "loss", "error", "test loss", "test error")]
        for row in self.epochs:
            scores = f"{row.loss:.4f}", f"{row.error:.2%}", f"{row.test_loss:.4f}", f"{row.test_error:.2%}"
            rows.append((str(row.epoch), str(row.step), f"{row.lr:.3g}", *scores))
        return aligned(rows, gap=1, least=(5, 7, 9, 7, 7, 11, 11))


def to_line(row: Row) -> str:
    """A row as a line of JSON; losses that are not finite become null, and NaN where the line is read.

    Example:
        >>> row = StepRow(step=10, epoch=1, lr=0.1, loss=2.5, error=0.75, gradient=1.5)
        >>> to_line(row)
        '{"kind": "step", "step": 10, "epoch": 1, "lr": 0.1, "loss": 2.5, "error": 0.75, "gradient": 1.5}'
        >>> from_line(to_line(row)) == row
        True
    """
    kind = next(name for name, kind in KINDS.items() if isinstance(row, kind))
    return json.dumps(finite({"kind": kind, **dataclasses.asdict(row)}), allow_nan=False)


def from_line(line: str) -> Row:
    """The row that a line of :func:`to_line` holds.

    Raises:
        CheckpointError: it holds none.
    """
    try:
        values: dict[str, Any] = json.loads(line, object_pairs_hook=unique_keys)
        kind = values.pop("kind")
        if strangers := values.keys() - {field.name for field in dataclasses.fields(KINDS[kind])}:
            raise KeyError(*strangers)
        values |= {name: math.nan for name in ("loss", "test_loss") if name in values and values[name] is None}
        return _ROWS[kind].validate_json(json.dumps(values), strict=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = faults_of_schema(error) if isinstance(error, ValidationError) else type(error).__name__
        raise CheckpointError(f"this is no line of the metrics: {line[:80]!a} ({what})") from error
