"""A network, its teacher, batches -> errors before and after a fine-tuning, and a calibration with one more stage."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from pararealize.network.module import PararealModule

from .interface_errors import ErrorSums, measure_errors
from .interfaces import Interfaces
from .output_kind import OutputKind
from .report import Calibration
from .rows import Errors
from .teacher import Teacher

__all__ = ["errors_of", "measure_tuning", "with_stage"]


def measure_tuning(
    net: PararealModule,
    teacher: Teacher,
    batches: Callable[[], Iterator[Any]],
    kind: OutputKind,
    *,
    original: bool = False,
) -> ErrorSums:
    """The errors against the teacher, or the original, in one pass: a loader may shuffle as it likes."""
    interfaces = Interfaces(net, teacher.original.mask)
    ours, theirs = itertools.tee(batches())
    values = (interfaces.in_sequence(batch, number) for number, batch in enumerate(ours, start=1))
    return measure_errors(
        interfaces, values, kind, reference=map(teacher.in_sequence if original else teacher.true, theirs)
    )


def errors_of(sums: ErrorSums, stage: str, teacher: Teacher) -> Errors:
    """The relative errors; NaN at adapters and interfaces, whose true values are the original's, where that is lost."""
    errors = sums.errors(stage)
    if teacher.has_original:
        return errors
    adapters, interfaces = ((math.nan,) * len(values) for values in (errors.adapters, errors.interfaces))
    return dataclasses.replace(errors, adapters=adapters, interfaces=interfaces)


def with_stage(calibration: Calibration, steps: int, measured: ErrorSums, teacher: Teacher) -> Calibration:
    """The calibration with one more stage, and a warning where that is not of the samples of the stages before."""
    errors, warnings = errors_of(measured, "fine-tuned", teacher), calibration.warnings
    if calibration.outputs == "values":  # by another opinion of the outputs than this one's, perhaps
        errors = dataclasses.replace(errors, agreement=None, accuracy=None)
    if teacher.reference == "teacher" and not teacher.has_original:
        fact = (
            f"fine-tuned, the output is compared with that of the teacher ({teacher.text}), before with the original's"
        )
        warnings = (*warnings, fact)
    if measured.samples != calibration.tested:
        fact = f"fine-tuned, errors are of {measured.samples} samples, and before of {calibration.tested} others"
        warnings = (*warnings, f"{fact}: pass the calibration's batches and test= to compare them")
    return dataclasses.replace(
        calibration,
        stages=(*calibration.stages, errors),
        fine_tune_steps=calibration.fine_tune_steps + steps,
        warnings=tuple(dict.fromkeys(warnings)),
    )
