"""Losses of a fine-tuning, errors before and after -> FineTuning: prints, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import TypeAdapter

from pararealize.coarse.spec import Count, Number, Text
from pararealize.control_characters import visible
from pararealize.errors import CalibrationError
from pararealize.plan.json_text import finite, parse_json, read_json
from pararealize.table import aligned, share, shortened

from .report import Calibration
from .rows import Errors
from .verdict import USABLE_ERROR, Verdict, judge

__all__ = ["TUNING_VERSION", "FineTuning", "TuningRow"]

TUNING_VERSION = 1
MOST_ROWS = 12  # that are printed
WIDTH = 120


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TuningRow:
    """A look at the batches held out.

    Attributes:
        step: behind which it was; 0 before the first.
        lr: learning rate of that step.
        loss: mean over the steps since the look before, as trained; None before the first.
        held_out: the outputs' loss on the batches held out.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    step: Count
    lr: float
    loss: float | None
    held_out: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """The report of a fine-tuning; it prints as a table.

    Attributes:
        model: the class name of the model.
        n: number of segments of the longest window.
        windows: number of segments of each window.
        blocks: how many blocks the windows of several segments have together.
        coarse: the kind of coarse blocks.
        teacher: whose outputs were distilled.
        loss: the name of the loss.
        why: what chose it.
        temperature: of ``"kl"``.
        match: weight of the windows' ends in the loss.
        train: which parameters were trained, in words.
        trained: how many numbers these are.
        norms: ``"keep"`` or ``"train"``, as batch norms were; empty where there are none to train.
        trials: the loss on the batches held out that each of both came to, where both were tried.
        steps: how many steps were taken.
        best: the step behind which the weights are that the network has; 0 where none made it better.
        samples: how many samples a round of the training batches has.
        tested: on how many samples losses and errors are measured.
        held_out: which these are; empty where they are those that were trained on.
        rows: the losses.
        before: the errors before, of adapters and interfaces against the original: NaN where another model teaches and
            the original is lost.
        after: the errors behind it.
        accuracy: of the reference; None without labels or classes.
        seconds: how long it took.
        calibration: the report of the calibration before, where it was given, with the stage ``"fine-tuned"``.
        reference: whose output the errors are against: ``"original"``, or ``"teacher"`` where another model teaches.
        version: version of the JSON document.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    model: Text
    n: Number
    windows: tuple[Number, ...]
    blocks: Count
    coarse: Text
    teacher: Text
    loss: Text
    why: Text
    temperature: float
    match: float
    train: Text
    trained: Count
    norms: Text
    trials: dict[Text, float]
    steps: Count
    best: Count
    samples: Count
    tested: Count
    held_out: Text
    rows: tuple[TuningRow, ...]
    before: Errors
    after: Errors
    accuracy: float | None
    seconds: float
    calibration: Calibration | None = None
    reference: Text = "original"
    version: int = TUNING_VERSION

    @property
    def loss_before(self) -> float:
        """The outputs' loss on the batches held out before the first step."""
        return self.rows[0].held_out

    @property
    def loss_after(self) -> float:
        """The same with the weights that the network has now: never larger."""
        return next(row.held_out for row in self.rows if row.step == self.best)

    @property
    def verdict(self) -> Verdict:
        """Whether the network can be used as it is now, and what to do where it cannot."""
        return self.judge()

    def judge(self, tolerance: float = USABLE_ERROR) -> Verdict:
        """The same for another tolerance of the output's relative error.

        Raises:
            CalibrationError: the tolerance is not positive.
        """
        return judge(
            self.after,
            windows=self.windows,
            blocks=self.blocks,
            coarse=self.coarse,
            accuracy=self.accuracy,
            tolerance=tolerance,
            held_out=bool(self.held_out),
            fine_tuned=True,
            reference=self.reference,
        )

    def to_json(self) -> str:
        """A JSON document, the verdict in it; numbers that are not finite become null."""
        document = dataclasses.asdict(self) | {"verdict": dataclasses.asdict(self.verdict)}
        document["calibration"] = None if self.calibration is None else json.loads(self.calibration.to_json())
        return json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> FineTuning:
        """What :meth:`to_json` gave; errors that are null become NaN.

        Raises:
            CalibrationError: it is no such document, of another version, or contradicts itself.
        """
        values = parse_json(text, "FineTuning.to_json()", CalibrationError)
        if not isinstance(values, dict):
            raise CalibrationError(f"this is no fine-tuning: it is a {type(values).__name__}; pass what to_json gave")
        if (version := values.get("version")) != TUNING_VERSION:
            raise CalibrationError(
                f"the fine-tuning is of version {version!r}, and this reads version {TUNING_VERSION}"
            )
        verdict, calibration = values.pop("verdict", None), values.pop("calibration", None)
        for name in ("before", "after"):
            if isinstance(errors := values.get(name), dict):
                for key in ("adapters", "interfaces", "output"):
                    errors |= {key: _numbers(errors[key])} if key in errors else {}
        tuning = read_json(_ADAPTER, json.dumps(values), "fine-tuning", CalibrationError)
        if calibration is not None:
            tuning = dataclasses.replace(tuning, calibration=Calibration.from_json(json.dumps(calibration)))
        if faults := list(_contradictions(tuning, verdict)):
            raise CalibrationError("this fine-tuning cannot be read: " + "; ".join(faults))
        return tuning

    def __str__(self) -> str:
        return _text(self)


_ADAPTER = TypeAdapter(FineTuning)


def _contradictions(tuning: FineTuning, verdict: Any) -> Iterator[str]:
    steps = [row.step for row in tuning.rows]
    if not steps or steps != sorted(set(steps)) or steps[0] or steps[-1] > tuning.steps:
        yield f"its losses are behind steps {shortened(', '.join(map(str, steps)), 200)} of {tuning.steps}"
    elif tuning.best not in steps:
        yield f"its best step, {tuning.best}, is none of those with a loss"
    elif tuning.loss_after > min(row.held_out for row in tuning.rows):
        yield "its best step is not that of the smallest loss"
    elif max(tuning.windows, default=0) != tuning.n:
        yield f"its longest window has {max(tuning.windows, default=0)} segments; n = {tuning.n}"
    elif verdict != dataclasses.asdict(tuning.verdict):
        yield "its verdict does not follow from its errors"


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [math.nan if item is None else item for item in value]
    return math.nan if value is None else value


# As text ------------------------------------------------------------------------------------------------------------


def _text(tuning: FineTuning) -> str:
    windows = f"{len(tuning.windows)} windows, " if len(tuning.windows) > 1 else ""
    temperature = f" at temperature {tuning.temperature:g}" if tuning.loss == "kl" and tuning.temperature != 1 else ""
    match = f", and the windows' ends with weight {tuning.match:g}" if tuning.match else ""
    where = f"measured on {tuning.tested} samples, {tuning.held_out or 'those trained on'}"
    lines = [
        f"{shortened(tuning.model, WIDTH)}: n = {tuning.n}, {windows}fine-tuned for {tuning.steps} steps",
        f"teacher: {shortened(tuning.teacher, WIDTH)}",
        f"loss: {shortened(tuning.loss, WIDTH)}{temperature} ({shortened(tuning.why, WIDTH)}){match}; {where}",
        f"trained: {shortened(tuning.train, WIDTH)}, {tuning.trained:,} numbers{_norms(tuning)}",
    ]
    rows: list[tuple[str | None, ...]] = [("step", "lr", "loss", "held out", "")]
    for row in _some(tuning.rows, tuning.best):
        loss = None if row.loss is None else f"{row.loss:.4g}"
        mark = "the best: kept" if row.step == tuning.best else ""
        rows.append((str(row.step), f"{row.lr:.3g}", loss, f"{row.held_out:.4g}", mark))
    tables = ["\n".join(lines), aligned(rows, "rrrrl", missing="–", width=WIDTH)]
    before, after, name = tuning.before, tuning.after, shortened(tuning.reference, WIDTH)
    ends: list[tuple[str | None, ...]] = [
        ("", "before", "after"),
        ("output, relative error", f"{before.output:.4g}", f"{after.output:.4g}"),
    ]
    if before.cosine is not None and after.cosine is not None:
        ends.append((f"cosine with the {name}'s, mean", f"{before.cosine:.4f}", f"{after.cosine:.4f}"))
    if before.agreement is not None and after.agreement is not None:
        ends.append((f"same class as the {name}", share(before.agreement, 2), share(after.agreement, 2)))
    if tuning.accuracy is not None and before.accuracy is not None and after.accuracy is not None:
        title = f"accuracy ({name} {share(tuning.accuracy, 2)})"
        ends.append((title, share(before.accuracy, 2), share(after.accuracy, 2)))
    tables.append(aligned(ends, "l", missing="–"))
    if not tuning.best:
        tables.append(
            "no step made the loss on the batches held out smaller: the network is as it was; take another lr, or more "
            "batches"
        )
    tables.append(str(tuning.verdict))
    return visible("\n\n".join(tables))


def _norms(tuning: FineTuning) -> str:
    if not tuning.norms:
        return ""
    word = {"keep": "keep their statistics", "train": "normalise by the batch"}.get(tuning.norms, tuning.norms)
    tried = ", ".join(f"{name} {loss:.4g}" for name, loss in tuning.trials.items())
    return f"; batch norms {word}" + (f" (held out, both tried: {tried})" if tried else "")


def _some(rows: tuple[TuningRow, ...], best: int) -> list[TuningRow]:
    """The first and last rows, the best, and some between."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    places = {round(i * (len(rows) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)}
    return [row for i, row in enumerate(rows) if i in places or row.step == best]
