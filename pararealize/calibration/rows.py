"""The rows of a calibration's report: how parts were fitted, errors of a stage, what kinds of corrections give."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

from pararealize.coarse.spec import Count, Text

__all__ = ["CorrectionChoice", "Errors", "Fit", "indices"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How one part was fitted.

    Attributes:
        part: ``"C2"``, ``"F1"``, ``"K1"``; in window 3 of several ``"C3_2"``, and so on.
        kind: the adapter's recipe, the coarse block's or the correction's kind.
        method: ``"least squares"``, with what was chosen, ``"distilled"``, ``"distilled, last layer solved"``, or why
            it was left.
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
        adapters: errors of x_{m,j}, the input of segment j > 1 of window m, in this order.
        interfaces: errors of z_{m,j}, the corrected output of segment j of window m; the last of a window is w_m.
        output: error of the network's output.
        agreement: share of the samples, or of the positions that count, that both networks put into one class; None
            where the output is no classification.
        accuracy: share of the samples put into the right class; None without labels or classes.
        cosine: mean cosine of the output's vectors with the original's; None where it has none, or scores of classes.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    stage: Text
    adapters: tuple[float, ...]
    interfaces: tuple[float, ...]
    output: float
    agreement: float | None = None
    accuracy: float | None = None
    cosine: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionChoice:
    """What output corrections of each kind would leave of a window's error, on the samples held out.

    Attributes:
        m: the window, from 1; 0 where there is one alone.
        kind: the kind that the plan has.
        rank: its rank; 0 where the kind has none.
        used: whether the window has corrections now; not where they were worse than none.
        errors: ‖w_m − true‖ / ‖true‖ without corrections (``"none"``) and with those of each kind, by what ``coarse``
            calls them: ``"scale"``, ``"low-rank:16"``, ``"dense"``.
        error_fitted: that of the plan's kind on the samples it was fitted to; None where these are all there are.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    m: Count
    kind: Text
    rank: Count
    used: bool
    errors: dict[Text, float]
    error_fitted: float | None = None

    @property
    def name(self) -> str:
        """The kind as ``coarse`` calls it, with its rank."""
        return f"{self.kind}:{self.rank}" if self.rank else self.kind

    @property
    def error(self) -> float:
        """That of the plan's kind on the samples held out; NaN where it is not among ``errors``."""
        return self.errors.get(self.name, math.nan)

    @property
    def error_of_many(self) -> float:
        r"""About what it would be with very many samples.

        Of N rows and p features, least squares leave an error of :math:`e \sqrt{1 - p/N}` on those fitted to and, for p
        well below N, :math:`e \sqrt{1 + p/N}` on others: e is nearly their geometric mean.
        """
        return self.error if self.error_fitted is None else math.sqrt(self.error * self.error_fitted)


def indices(windows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(m, j) of all segments of windows of so many segments each; m is 0 where one window is alone."""
    lengths = tuple(windows)
    for m, length in enumerate(lengths, 1 if len(lengths) > 1 else 0):
        yield from ((m, j) for j in range(1, length + 1))
