"""Errors of adapters and interfaces, stage by stage, and how parts were fitted -> Calibration: prints, and as JSON."""

import dataclasses
import json
import math
from typing import Any

from pararealize.errors import CalibrationError
from pararealize.table import aligned, share

__all__ = ["VERSION", "Calibration", "Errors", "Fit"]

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How one part was fitted.

    Attributes:
        part: ``"C2"``, ``"F1"``, …
        kind: the adapter's recipe or the coarse block's kind.
        method: ``"least squares"``, ``"distilled"``, ``"distilled, last layer solved"``, or why it was left.
        seconds: how long the fit took.
    """

    part: str
    kind: str
    method: str
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

    stage: str
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

    model: str
    n: int
    coarse: str
    samples: int
    tested: int
    held_out: bool
    accuracy: float | None
    fits: tuple[Fit, ...]
    stages: tuple[Errors, ...]
    fine_tune_steps: int = 0
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
    def from_json(text: str) -> "Calibration":
        """What :meth:`to_json` gave; errors that are null become NaN.

        Raises:
            CalibrationError: it is no such document, or of another version.
        """
        try:
            values = json.loads(text)
            version = values.get("version")
            if version != VERSION:
                raise CalibrationError(f"the calibration is of version {version!r}, and this reads version {VERSION}")
            values["fits"] = tuple(Fit(**fit) for fit in values["fits"])
            values["stages"] = tuple(_errors(stage) for stage in values["stages"])
            return Calibration(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise CalibrationError(f"this is no calibration: {error}; pass what to_json gave") from error

    def __str__(self) -> str:
        return _text(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _errors(values: dict[str, Any]) -> Errors:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    several = {name: tuple(map(number, values[name])) for name in ("adapters", "interfaces")}
    return Errors(**values | several | {"output": number(values["output"])})


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
    title = f"{calibration.model}: n = {calibration.n}, coarse {calibration.coarse!r}"
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
    return "\n\n".join(tables)


def _error(value: float) -> str:
    return f"{value:.2e}" if value and (value < 1e-3 or value >= 1e4) else f"{value:.4f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else share(value, 2)
