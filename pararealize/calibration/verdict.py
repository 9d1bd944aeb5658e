r"""Errors of a stage, how the network was cut -> Verdict: whether it can be used so, and if not, which cut would do.

Blocks of one window do not see what those beside them give. With L residual blocks of size :math:`\varepsilon`
and windows of n segments, the error is of the order of the number of such pairs times :math:`\varepsilon^2`,

.. math:: e \propto \frac{L}{2} \cdot \ell \Bigl(1 - \frac1n\Bigr) \varepsilon^2, \qquad \ell = \frac LM,

so that at the same n it falls as 1 / M, and at the same window as 1 - 1 / n. From one measured error this gives the
number of windows, or the smaller n, from which on it should do; :func:`~pararealize.tradeoff` measures it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from pararealize.coarse.spec import Text
from pararealize.errors import CalibrationError
from pararealize.table import share

from .rows import Errors

__all__ = ["USABLE_AGREEMENT", "USABLE_ERROR", "Verdict", "judge"]

USABLE_ERROR = 0.25  # of the output's norm: about cosine 0.97 for vectors of unit length
USABLE_AGREEMENT = 0.95
USABLE_LOSS = 0.01  # of accuracy
NEARER = 1.01  # times an error is another one that is told


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a network can be used as it is.

    Attributes:
        usable: whether it can.
        sentence: that, the figure that says so, and what to do where it cannot.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    usable: bool
    sentence: Text

    def __str__(self) -> str:
        return self.sentence


def judge(
    errors: Errors,
    *,
    before: Errors | None = None,
    windows: Sequence[int],
    blocks: int,
    coarse: str = "",
    accuracy: float | None = None,
    tolerance: float = USABLE_ERROR,
    held_out: bool = True,
    few_samples: bool = False,
    fine_tuned: bool = False,
    reference: str = "original",
) -> Verdict:
    """A sentence about a network at the errors of one stage.

    It is usable where the output's relative error is at most the tolerance, or, of a classification, where the class is
    the same in 95 % of the samples, or at most one percentage point of accuracy is lost to the network in sequence.

    Args:
        errors: of the stage.
        before: of the network before anything was fitted; the sentence says where the output was nearer then.
        windows: how many segments each window has.
        blocks: how many blocks the windows of several segments have together.
        coarse: the kind of coarse blocks.
        accuracy: that of the network in sequence; None without labels.
        tolerance: of the output's relative error.
        held_out: whether the errors are those of samples that nothing was fitted to.
        few_samples: whether output corrections would err less if they were fitted to more samples.
        fine_tuned: whether the stage is behind a fine-tuning, which is then not recommended.
        reference: whose output the errors are against, in a word.

    Raises:
        CalibrationError: the tolerance is not positive.

    Example:
        >>> errors = Errors(stage="after", adapters=(), interfaces=(), output=1.05)
        >>> print(judge(errors, windows=(4,), blocks=24))
        not usable: output error 1.05: worse than answering zero; take more windows (about 5 at n = 4), or fine-tune
    """
    if not tolerance > 0:
        raise CalibrationError(f"tolerance is {tolerance!r}; pass a positive relative error of the output")
    by_class, figure = errors.agreement is not None, f"output error {_number(errors.output)}"
    if errors.agreement is None:
        usable = errors.output <= tolerance
    elif errors.accuracy is not None and accuracy is not None:
        lost = accuracy - errors.accuracy
        usable = lost <= USABLE_LOSS or errors.agreement >= USABLE_AGREEMENT
        figure = f"accuracy {share(errors.accuracy, 2)} of the {reference}'s {share(accuracy, 2)} ({figure})"
    else:
        usable = errors.agreement >= USABLE_AGREEMENT
        figure = f"the same class as the {reference} in {share(errors.agreement, 2)} ({figure})"
    was_nearer = before is not None and _is_nearer(before, errors)
    worse = f", more than {_number(before.output)} before it was fitted" if before and was_nearer else ""
    if usable:
        where = "" if held_out else ", of the samples fitted to"
        return Verdict(usable=True, sentence=f"usable at this error: {figure}{where}{worse}")
    if not math.isfinite(errors.output):
        return Verdict(usable=False, sentence=f"not usable: the output is not finite, or the {reference}'s is zero")
    if errors.output >= 1 and not by_class:
        figure += ": worse than answering zero"
    elif not by_class:
        figure += f", above {tolerance:g}"
    figure += worse
    remedies = [_more_windows(errors.output, windows, blocks, tolerance)]
    if coarse == "linear":
        remedies.append("coarse='low-rank', whose corrections have a closed form")
    if (few_samples or was_nearer) and not fine_tuned:
        remedies.append("calibrate on more samples")
    if was_nearer:
        remedies.append("convert the model anew and do without")
    if not fine_tuned:
        remedies.append("fine-tune")
    advice = ", or ".join(filter(None, remedies))
    return Verdict(usable=False, sentence=f"not usable: {figure}" + (f"; {advice}" if advice else ""))


def _is_nearer(before: Errors, after: Errors) -> bool:
    """Whether the output was nearer to the reference before, by more than rounding and in classes, too."""
    return after.output > NEARER * before.output and (before.agreement or 0.0) >= (after.agreement or 0.0)


def _more_windows(error: float, windows: Sequence[int], blocks: int, tolerance: float) -> str:
    """The number of windows at the same n that should do, or a smaller n where they would be too short for it."""
    n, parallel = max(windows, default=1), sum(length > 1 for length in windows)
    if n < 2 or not parallel:
        return ""
    needed = math.ceil(parallel * error / tolerance)
    if needed * n <= blocks:
        if needed <= parallel:  # classes differ though the error is small
            needed = parallel + 1
        return f"take more windows (about {needed} at n = {n})" if needed * n <= blocks else _fewer(n)
    for fewer in range(n - 1, 1, -1):
        most = blocks // fewer  # windows of one block a segment
        expected = error * (1 - 1 / fewer) / (1 - 1 / n) * parallel / most
        if expected <= tolerance and most > 0:
            enough = math.ceil(parallel * error * (1 - 1 / fewer) / (1 - 1 / n) / tolerance)
            return f"take n = {fewer} (with about {min(max(enough, 1), most)} windows)"
    most = blocks // n
    if most > parallel:
        return f"take more windows ({most} at n = {n} should leave about {_number(error * parallel / most)})"
    return _fewer(n)


def _fewer(n: int) -> str:
    words = "leave blocks that matter sequential (tradeoff(model, batches) measures which)"
    return f"take a smaller n, or {words}" if n > 2 else words


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
