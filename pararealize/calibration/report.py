"""Errors of adapters and interfaces, stage by stage, and how parts were fitted -> Calibration: prints, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import TypeAdapter

from pararealize.coarse.spec import Count, Number, Text
from pararealize.control_characters import visible
from pararealize.errors import CalibrationError
from pararealize.plan.json_text import parse_json, read_json
from pararealize.table import aligned, share, shortened

__all__ = ["VERSION", "Calibration", "Errors", "Fit"]

VERSION = 1
STAGES = ("before", "after", "fine-tuned")
MOST_FAULTS = 12  # that a message lists


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How one part was fitted.

    Attributes:
        part: ``"C2"``, ``"F1"``, …
        kind: the adapter's recipe or the coarse block's kind.
        method: ``"least squares"``, ``"distilled"``, ``"distilled, last layer solved"``, or why it was left.
        seconds: how long the fit took.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # of a file, in which unknown keys are faults

    part: Text
    kind: Text
    method: Text
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far the parareal network is from the network in sequence, at one stage of the calibration.

    Errors are relative, ‖value − true value‖ / ‖true value‖ over all samples.

    Attributes:
        stage: ``"before"``, ``"after"``, ``"fine-tuned"``.
        adapters: errors of x_j, the input of segment j, by j = 2..n.
        interfaces: errors of z_j, the corrected output of segment j, by j = 1..n; z_1 has none.
        output: error of the network's output.
        agreement: share of the samples that both networks put into one class; None where the output is no logits.
        accuracy: share of the samples put into the right class; None without labels.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    stage: Text
    adapters: tuple[float, ...]
    interfaces: tuple[float, ...]
    output: float
    agreement: float | None = None
    accuracy: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The report of a calibration; it prints as a table.

    Attributes:
        model: the class name of the model.
        n: number of segments.
        coarse: the kind of coarse blocks.
        samples: number of samples that were fitted to.
        tested: number of samples that the errors are measured on.
        held_out: whether these are others than those fitted to.
        accuracy: accuracy of the network in sequence on them; None without labels.
        fits: how each part was fitted.
        stages: the errors, in order.
        fine_tune_steps: steps of training everything afterwards.
        version: version of the JSON document.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    model: Text
    n: Number
    coarse: Text
    samples: Count
    tested: Count
    held_out: bool
    accuracy: float | None
    fits: tuple[Fit, ...]
    stages: tuple[Errors, ...]
    fine_tune_steps: Count = 0
    version: int = VERSION

    def stage(self, name: str) -> Errors:
        """The errors of one stage: ``"before"``, ``"after"`` or ``"fine-tuned"``.

        Raises:
            CalibrationError: there is no such stage.
        """
        for errors in self.stages:
            if errors.stage == name:
                return errors
        names = ", ".join(repr(errors.stage) for errors in self.stages)
        raise CalibrationError(f"there is no stage {name!r} of this calibration; there are {names}")

    def to_json(self) -> str:
        """A JSON document; numbers that are not finite become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "Calibration":
        """What :meth:`to_json` gave; errors that are null become NaN.

        Raises:
            CalibrationError: it is no such document, of another version, or contradicts itself; names every fault.
        """
        try:
            values = parse_json(text, "Calibration.to_json()", CalibrationError)
        except CalibrationError as error:
            raise CalibrationError(f"this is no calibration: {error}") from error
        if not isinstance(values, dict):
            raise CalibrationError(f"this is no calibration: it is a {type(values).__name__}; pass what to_json gave")
        if (version := values.get("version")) != VERSION:
            raise CalibrationError(f"the calibration is of version {version!r}, and this reads version {VERSION}")
        if any(isinstance(value, float) and not math.isfinite(value) for value in _values(values)):
            raise CalibrationError("this calibration has numbers that are not finite, which to_json gives as null")
        stages = values.get("stages")
        for stage in stages if isinstance(stages, list) else ():
            if isinstance(stage, dict):
                stage |= {name: _numbers(stage[name]) for name in ("adapters", "interfaces", "output") if name in stage}
        calibration = read_json(_ADAPTER, json.dumps(values), "calibration", CalibrationError)
        if faults := list(_contradictions(calibration)):
            raise CalibrationError("this calibration cannot be read:\n" + "\n".join(faults[:MOST_FAULTS]))
        return calibration

    def __str__(self) -> str:
        return _text(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _values(value: Any) -> Iterator[Any]:
    """All that a document holds, of a depth that has been looked at."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    yield value
    for item in items:
        yield from _values(item)


def _numbers(value: Any) -> Any:
    """Errors of a document: NaN where they are null."""
    if isinstance(value, list):
        return [math.nan if item is None else item for item in value]
    return math.nan if value is None else value


_ADAPTER = TypeAdapter(Calibration)


def _contradictions(calibration: Calibration) -> Iterator[str]:
    """What a report says about itself that cannot be."""
    n, parts = calibration.n, [fit.part for fit in calibration.fits]
    expected = [f"{letter}{j + (letter == 'C')}" for j in range(1, min(n, len(parts) + 2)) for letter in "CF"]
    if sorted(parts) != sorted(expected):
        shown = [shortened(", ".join(map(repr, names)), 200) or "none" for names in (parts, expected)]
        yield f"fits are of {shown[0]}; n = {n} has {shown[1]}"
    for fit in calibration.fits:
        if not fit.seconds >= 0:
            yield f"the fit of {shortened(fit.part, 60)!r} took {fit.seconds} s"
    names = [errors.stage for errors in calibration.stages]
    if names != [*STAGES[:2], *STAGES[2:] * (len(names) - 2)]:  # it may be fine-tuned several times
        yield f"its stages are {shortened(', '.join(map(repr, names)), 200)}; there are {', '.join(map(repr, STAGES))}"
    shares = [("accuracy", calibration.accuracy)]
    for errors in calibration.stages:
        stage = shortened(errors.stage, 60)
        for what, values, count in (("adapters", errors.adapters, n - 1), ("interfaces", errors.interfaces, n)):
            if len(values) != count:
                yield f"{stage}: {len(values)} errors of {what}; n = {n} has {count}"
        if any(value < 0 for value in (*errors.adapters, *errors.interfaces, errors.output)):
            yield f"{stage}: an error is negative"
        shares += [(f"{stage}: accuracy", errors.accuracy), (f"{stage}: agreement", errors.agreement)]
    yield from (f"{name} is {value}" for name, value in shares if value is not None and not 0 <= value <= 1)


# As text ------------------------------------------------------------------------------------------------------------

WIDTH = 120


def _text(calibration: Calibration) -> str:
    """Adapters, interfaces and the output, with a column a stage, and accuracies where there are labels."""
    stages = [errors.stage for errors in calibration.stages]
    fits = {fit.part: fit for fit in calibration.fits}
    adapters = [("C", "fitted by", "kind", *stages)]
    interfaces = [("z", "fitted by", "kind", *stages)]
    for j in range(2, calibration.n + 1):
        for rows, part, values in (
            (adapters, f"C{j}", [errors.adapters[j - 2] for errors in calibration.stages]),
            (interfaces, f"F{j - 1}", [errors.interfaces[j - 1] for errors in calibration.stages]),
        ):
            fit = fits[part]
            rows.append((str(j), fit.method, fit.kind, *map(_error, values)))
    outputs = (_error(errors.output) for errors in calibration.stages)
    ends: list[tuple[str | None, ...]] = [("", *stages), ("output, relative error", *outputs)]
    if all(errors.agreement is not None for errors in calibration.stages):
        ends.append(("same class as the original", *(_percent(errors.agreement) for errors in calibration.stages)))
    if calibration.accuracy is not None:
        ends.append((f"accuracy (original {share(calibration.accuracy, 2)})",
                     *(_percent(errors.accuracy) for errors in calibration.stages)))  # fmt: skip
    where = f"{calibration.tested} other samples" if calibration.held_out else "the same"
    title = (
        f"{shortened(calibration.model, WIDTH)}: n = {calibration.n}, coarse {shortened(calibration.coarse, WIDTH)!r}"
    )
    title += f", fitted to {calibration.samples} samples, errors on {where}"
    tables = [title]
    if calibration.n > 1:
        for heading, rows in (
            ("adapters, ‖x_j − true‖ / ‖true‖", adapters),
            ("interfaces, ‖z_j − true‖ / ‖true‖, corrected by F^{j-1}; z_1 is exact", interfaces),
        ):
            tables.append(f"{heading}\n{aligned(rows, 'lll', width=WIDTH)}")
    tables.append(aligned(ends, "l", missing="–"))
    if calibration.fine_tune_steps:
        tables.append(f"fine-tuned for {calibration.fine_tune_steps} steps; errors against the original before that")
    return visible("\n\n".join(tables))


def _error(value: float) -> str:
    return f"{value:.2e}" if value and (value < 1e-3 or value >= 1e4) else f"{value:.4f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else share(value, 2)
