"""Errors of adapters and interfaces, stage by stage, and how parts were fitted -> Calibration: prints, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import TypeAdapter

from pararealize.coarse.spec import Count, Number, Text, numbered
from pararealize.control_characters import visible
from pararealize.errors import CalibrationError
from pararealize.plan.json_text import finite, parse_json, read_json
from pararealize.table import aligned, share, shortened

from .rows import CorrectionChoice, Errors, Fit, indices
from .verdict import USABLE_ERROR, Verdict, judge

__all__ = ["VERSION", "Calibration"]

VERSION = 3
STAGES = ("before", "after", "fine-tuned")
MOST_FAULTS = 12  # that a message lists
ROUNDING = 1e-9
OutputName: TypeAlias = Literal["classes", "values"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The report of a calibration; it prints as a table.

    Attributes:
        model: the class name of the model.
        n: number of segments of the longest window.
        windows: number of segments of each window.
        blocks: how many blocks the windows of several segments have together.
        coarse: the kind of coarse blocks.
        outputs: what the outputs are: ``"classes"`` or ``"values"``.
        why: what says so.
        samples: number of samples that were fitted to.
        tested: number of samples that the errors are measured on.
        held_out: whether these are others than those fitted to.
        accuracy: accuracy of the network in sequence on them; None without labels.
        fits: how each part was fitted.
        stages: the errors, in order.
        fine_tune_steps: steps of training everything afterwards.
        corrections: what output corrections of each kind give, window by window, where the plan has any.
        held_out_part: which samples were held out, to choose penalties, ranks and statistics by; empty where nothing
            was chosen so.
        renewed: the parts whose batch norms have new running statistics (``"g2_1"``, ``"head"``), of this calibration
            or an earlier one.
        warnings: what a reader should know, a sentence each.
        version: version of the JSON document.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    model: Text
    n: Number
    windows: tuple[Number, ...]
    blocks: Count
    coarse: Text
    outputs: OutputName
    why: Text
    samples: Count
    tested: Count
    held_out: bool
    accuracy: float | None
    fits: tuple[Fit, ...]
    stages: tuple[Errors, ...]
    fine_tune_steps: Count = 0
    corrections: tuple[CorrectionChoice, ...] = ()
    held_out_part: Text = ""
    renewed: tuple[Text, ...] = ()
    warnings: tuple[Text, ...] = ()
    version: int = VERSION

    @property
    def verdict(self) -> Verdict:
        """Whether the network can be used at the errors of the last stage, and what to do where it cannot."""
        return self.judge()

    def judge(self, tolerance: float = USABLE_ERROR) -> Verdict:
        """The same for another tolerance of the output's relative error.

        Raises:
            CalibrationError: the tolerance is not positive.
        """
        return judge(
            self.stages[-1],
            before=self.stages[0],
            windows=self.windows,
            blocks=self.blocks,
            coarse=self.coarse,
            accuracy=self.accuracy,
            tolerance=tolerance,
            held_out=self.held_out,
            few_samples=bool(_of_few_samples(self)),
            fine_tuned=self.fine_tune_steps > 0,
        )

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
        """A JSON document, the verdict in it; numbers that are not finite become null."""
        document = dataclasses.asdict(self) | {"verdict": dataclasses.asdict(self.verdict)}
        return json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

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
        verdict = values.pop("verdict", None)  # which follows from the rest
        stages = values.get("stages")
        for stage in stages if isinstance(stages, list) else ():
            if isinstance(stage, dict):
                stage |= {name: _numbers(stage[name]) for name in ("adapters", "interfaces", "output") if name in stage}
        corrections = values.get("corrections")
        for choice in corrections if isinstance(corrections, list) else ():
            if isinstance(choice, dict) and isinstance(choice.get("errors"), dict):
                choice["errors"] = {name: _numbers(value) for name, value in choice["errors"].items()}
        calibration = read_json(_ADAPTER, json.dumps(values), "calibration", CalibrationError)
        faults = list(_contradictions(calibration))
        if not faults and verdict != dataclasses.asdict(calibration.verdict):
            faults = ["its verdict does not follow from its errors"]
        if faults:
            raise CalibrationError("this calibration cannot be read:\n" + "\n".join(faults[:MOST_FAULTS]))
        return calibration

    def __str__(self) -> str:
        return _text(self)


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
    n, windows = calibration.n, calibration.windows
    if max(windows, default=0) != n:
        yield f"its longest window has {max(windows, default=0)} segments; n = {n}"
        return
    yield from _faults_of_fits(calibration)
    for choice in calibration.corrections:
        values = (*choice.errors.values(), choice.error_fitted or 0.0)
        if choice.m > len(windows) or any(value < 0 for value in values):
            yield f"corrections of window {choice.m} have errors below 0, or there is no such window"
    names = [errors.stage for errors in calibration.stages]
    if names != [*STAGES[:2], *STAGES[2:] * (len(names) - 2)]:  # it may be fine-tuned several times
        yield f"its stages are {shortened(', '.join(map(repr, names)), 200)}; there are {', '.join(map(repr, STAGES))}"
    yield from _faults_of_shares([("accuracy", calibration.accuracy)])
    for errors in calibration.stages:
        yield from _faults_of_errors(calibration, errors)


def _faults_of_fits(calibration: Calibration) -> Iterator[str]:
    """Fits of parts that there are not, or of too few."""
    windows, parts = calibration.windows, [fit.part for fit in calibration.fits]
    most = len(parts) + 2  # of the segments that a file speaks of, at most so many are counted out
    segments = list(islice(indices(windows), most))
    expected = [name for m, j in segments if j > 1 for name in (numbered("C", m, j), numbered("F", m, j - 1))]
    corrections = [part for part in parts if part.startswith("K")]
    others = [part for part in parts if not part.startswith("K")]
    if sorted(others) != sorted(expected):
        shown = [shortened(", ".join(map(repr, names)), 200) or "none" for names in (others, expected)]
        yield f"fits are of {shown[0]}; n = {calibration.n} has {shown[1]}"
    corrected = {numbered("K", m, j) for m, j in segments if windows[max(m, 1) - 1] > 1}
    if len(set(corrections)) != len(corrections) or not corrected.issuperset(corrections):
        yield f"fits are of corrections {shortened(', '.join(map(repr, corrections)), 200)}, twice or of no segment"
    for fit in calibration.fits:
        if not fit.seconds >= 0:
            yield f"the fit of {shortened(fit.part, 60)!r} took {fit.seconds} s"


def _faults_of_errors(calibration: Calibration, errors: Errors) -> Iterator[str]:
    """Errors of one stage that are too many, too few or out of range."""
    windows, stage = calibration.windows, shortened(errors.stage, 60)
    listed = shortened(", ".join(map(str, windows)), 200)
    for what, values, count in (
        ("adapters", errors.adapters, sum(windows) - len(windows)),
        ("interfaces", errors.interfaces, sum(windows)),
    ):
        if len(values) != count:
            yield f"{stage}: {len(values)} errors of {what}; windows of {listed} segments have {count}"
    if any(value < 0 for value in (*errors.adapters, *errors.interfaces, errors.output)):
        yield f"{stage}: an error is negative"
    if errors.cosine is not None and not -1 - ROUNDING <= errors.cosine <= 1 + ROUNDING:
        yield f"{stage}: cosine is {errors.cosine}"
    if calibration.outputs == "values" and (errors.agreement, errors.accuracy) != (None, None):
        yield f"{stage}: values have no classes to agree in"
    yield from _faults_of_shares([(f"{stage}: accuracy", errors.accuracy), (f"{stage}: agreement", errors.agreement)])


def _faults_of_shares(shares: Sequence[tuple[str, float | None]]) -> Iterator[str]:
    yield from (f"{name} is {value}" for name, value in shares if value is not None and not 0 <= value <= 1)


# As text ------------------------------------------------------------------------------------------------------------

WIDTH = 120
NEGLIGIBLE = 1e-3  # a window's error
WORTH = 0.1  # of a correction's error: what more samples must save to be recommended
NOTHING = "left: nothing to fit"


def _text(calibration: Calibration) -> str:
    """Windows, adapters, interfaces and the output, with a column a stage, and accuracies where there are labels."""
    tables = [_title(calibration)]
    if len(calibration.windows) > 1 or calibration.corrections:
        tables.append(_window_table(calibration))
    if calibration.n > 1:
        tables += _part_tables(calibration)
    if calibration.corrections:
        tables.append(_correction_table(calibration))
    if few := _of_few_samples(calibration):
        tables.append(_few_samples(few))
    tables.append(_output_table(calibration))
    if calibration.renewed:
        names = shortened(", ".join(calibration.renewed), WIDTH)
        tables.append(f"running statistics of batch norms renewed in {names}")
    if calibration.fine_tune_steps:
        tables.append(f"fine-tuned for {calibration.fine_tune_steps} steps; errors against the original before that")
    tables += [f"warning: {shortened(warning, 400)}" for warning in calibration.warnings]
    tables.append(str(calibration.verdict))
    return visible("\n\n".join(tables))


def _title(calibration: Calibration) -> str:
    where = f"{calibration.tested} other samples" if calibration.held_out else "the same"
    return (
        f"{shortened(calibration.model, WIDTH)}: n = {calibration.n}, {_windows(calibration.windows)}coarse "
        f"{shortened(calibration.coarse, WIDTH)!r}, fitted to {calibration.samples} samples, errors on {where}"
    )


def _part_tables(calibration: Calibration) -> Iterator[str]:
    """How each adapter and each coarse block was fitted, and the errors of what they give."""
    segments = list(indices(calibration.windows))
    adapted = [index for index in segments if index[1] > 1]
    fits = {fit.part: fit for fit in calibration.fits}
    stages = [errors.stage for errors in calibration.stages]
    adapters = [("C", "fitted by", "kind", *stages)]
    interfaces = [("z", "fitted by", "kind", *stages)]
    errors_of = dict(zip(segments, zip(*(one.interfaces for one in calibration.stages), strict=True), strict=True))
    for place, (m, j) in enumerate(adapted):
        for rows, part, values in (
            (adapters, numbered("C", m, j), [one.adapters[place] for one in calibration.stages]),
            (interfaces, numbered("F", m, j - 1), errors_of[m, j]),
        ):
            fit = fits[part]
            if m == 0 or fit.method != NOTHING:
                rows.append((_name((m, j)), fit.method, fit.kind, *map(_error, values)))
    exact = "; z_1 is exact" if len(calibration.windows) == 1 else ""
    for heading, rows in (
        ("adapters, ‖x_j − true‖ / ‖true‖", adapters),
        (f"interfaces, ‖z_j − true‖ / ‖true‖, corrected by F^{{j-1}}{exact}", interfaces),
    ):
        if len(rows) > 1:
            yield f"{heading}\n{aligned(rows, 'lll', width=WIDTH)}"


def _output_table(calibration: Calibration) -> str:
    """The output's error, what classes or directions have in common with the original's, and accuracies."""
    stages = calibration.stages
    rows: list[tuple[str | None, ...]] = [("", *(errors.stage for errors in stages))]
    rows.append(("output, relative error", *(_error(errors.output) for errors in stages)))
    if all(errors.agreement is not None for errors in stages):
        rows.append(("same class as the original", *(_percent(errors.agreement) for errors in stages)))
    if all(errors.cosine is not None for errors in stages):
        rows.append(("cosine with the original's, mean", *(f"{errors.cosine:.4f}" for errors in stages)))
    if calibration.accuracy is not None:
        title = f"accuracy (original {share(calibration.accuracy, 2)})"
        rows.append((title, *(_percent(errors.accuracy) for errors in stages)))
    return aligned(rows, "l", missing="–")


def _name(index: tuple[int, int]) -> str:
    m, j = index
    return f"{m},{j}" if m else f"{j}"


def _windows(windows: Sequence[int]) -> str:
    return f"{len(windows)} windows, " if len(windows) > 1 else ""


def _window_table(calibration: Calibration) -> str:
    """The error of w_m, what the window's corrections were fitted by, and how many segments it has."""
    fits = {fit.part: fit for fit in calibration.fits}
    rows: list[tuple[str | None, ...]] = [("m", "segments", "corrections", *(one.stage for one in calibration.stages))]
    errors = zip(*(one.interfaces for one in calibration.stages), strict=True)
    errors_of = dict(zip(indices(calibration.windows), errors, strict=True))
    for m, length in enumerate(calibration.windows, 1 if len(calibration.windows) > 1 else 0):
        names = [numbered("K", m, j) for j in range(1, length + 1)]
        of_window = [fits[name] for name in names if name in fits]
        text = f"{of_window[0].kind}: {of_window[0].method}" if of_window else None
        if len(of_window) > 1 and "folded into" in of_window[0].method:
            text = f"{text} and {len(of_window) - 1} more"
        rows.append((str(m or 1), str(length), text, *map(_error, errors_of[m, length])))
    return f"windows, ‖w_m − true‖ / ‖true‖\n{aligned(rows, 'lll', missing='–', width=WIDTH)}"


def _correction_table(calibration: Calibration) -> str:
    """What corrections of each kind give, a row a window."""
    names = dict.fromkeys(kind for choice in calibration.corrections for kind in choice.errors)
    kinds = sorted(names, key=_freedom)  # windows of fewer channels have fewer ranks
    rows: list[tuple[str | None, ...]] = [("m", *kinds, "used")]
    for choice in calibration.corrections:
        errors = (choice.errors.get(kind) for kind in kinds)
        used = choice.name if choice.used else "none"
        rows.append((str(choice.m or 1), *(None if e is None else _error(e) for e in errors), used))
    where = f" on {calibration.held_out_part}" if calibration.held_out_part else ""
    heading = f"output corrections, ‖w_m − true‖ / ‖true‖{where}, before rounding"
    return f"{heading}\n{aligned(rows, 'l', missing='–', width=WIDTH)}"


def _of_few_samples(calibration: Calibration) -> list[CorrectionChoice]:
    """The windows whose corrections would err by a tenth less if they had been fitted to very many samples."""
    used = (choice for choice in calibration.corrections if choice.used and choice.error > NEGLIGIBLE)
    return [choice for choice in used if choice.error_of_many < (1 - WORTH) * choice.error]


def _few_samples(choices: list[CorrectionChoice]) -> str:
    worst = min(choices, key=lambda choice: choice.error_of_many / choice.error)
    where = f"of {len(choices)} windows are" if len(choices) > 1 else "are"
    return (
        f"the corrections {where} fitted to few samples: those of window {worst.m or 1} leave {_error(worst.error)} of "
        f"the samples held out, and {_error(worst.error_fitted or 0.0)} of those fitted to; with many more it would be "
        f"about {_error(worst.error_of_many)}"
    )


def _freedom(kind: str) -> tuple[int, int]:
    """Sorts kinds of corrections by how much they may do."""
    name, _, rank = kind.partition(":")
    number = int(rank) if rank.isdecimal() and len(rank) < 10 else 0
    return {"none": 0, "scale": 1, "low-rank": 2, "folded": 3}.get(name, 4), number


def _error(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2e}" if value and (value < 1e-3 or value >= 1e4) else f"{value:.4f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else share(value, 2)
