"""InterfaceValues -> ErrorSums: how far a parareal network is from the network in sequence, interface by interface."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.coarse.spec import numbered
from pararealize.errors import CalibrationError
from pararealize.network.parts import Index
from pararealize.train.run.score import correct

from .interfaces import Interfaces, InterfaceValues
from .masks import unmasked
from .output_kind import OutputKind, named_leaves, whole_numbers
from .rows import Errors, indices

__all__ = ["ErrorSums", "SquareSums", "measure_errors"]


@dataclasses.dataclass(slots=True)
class SquareSums:
    """‖value − true‖² and ‖true‖², summed over all samples in double precision, and how many numbers these are."""

    error: float = 0.0
    whole: float = 0.0
    count: int = 0

    def add(self, value: Tensor, true: Tensor, mask: Tensor | None = None) -> None:
        """Take in one value and what it should be, at the tokens that count."""
        value, true = unmasked(value, mask), unmasked(true, mask).to(value.device).double()
        self.error += (value.double() - true).square().sum().item()
        self.whole += true.square().sum().item()
        self.count += true.numel()

    @property
    def relative(self) -> float:
        """‖value − true‖ / ‖true‖; infinite where only the true value is zero, NaN where nothing was taken in."""
        if not self.error:
            return 0.0 if self.count else math.nan
        return math.sqrt(self.error / self.whole) if self.whole else math.inf


class ErrorSums:
    """Errors of a network and its hits in classification, summed over all samples and positions that count.

    Args:
        windows: how many segments each window has.
        kind: what the outputs are.

    Attributes:
        adapters: sums for x_{m,j}, j > 1, by (m, j).
        interfaces: sums for z_{m,j}, by (m, j).
        output: sums for the network's output, of all its floating-point and complex tensors.
        uncompared: its other tensors, of which there are no errors.
        without: sums for y_{m,j} in the place of z_{m,j}, where F^{m,j-1} is an identity.
        samples: how many samples were taken in.
    """

    def __init__(self, windows: Sequence[int], kind: OutputKind) -> None:
        self.interfaces = {index: SquareSums() for index in indices(windows)}
        self.adapters = {(m, j): SquareSums() for m, j in self.interfaces if j > 1}
        self.output, self.uncompared = SquareSums(), list[str]()
        self.without: dict[Index, SquareSums] = {}
        self.samples = 0
        self._kind = kind
        self._rows = self._same_class = self._labelled = self._correct = self._correct_in_sequence = 0
        self._all_labelled = True
        self._vectors, self._cosines = 0, 0.0

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the network in sequence, of the samples that count; None where some have no label."""
        return self._correct_in_sequence / self._labelled if self._all_labelled and self._labelled else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Which tensors have no errors, and which identities among the coarse blocks are worse than none would be."""
        facts = [f"of integers there are no errors: {', '.join(self.uncompared)}"] if self.uncompared else []
        worse = [
            f"{numbered('F', m, j - 1)} ({_figure(self.interfaces[m, j].relative)}, without it {_figure(y.relative)})"
            for (m, j), y in self.without.items()
            if y.relative < self.interfaces[m, j].relative
        ]
        if not worse:
            return tuple(facts)
        listed = ", ".join(worse[:3]) + f" and {len(worse) - 3} more" * (len(worse) > 3)
        fact = f"identities as coarse blocks leave a larger error than none: {listed}"
        remedy = "choose another kind (coarse='dense', 'low-rank' or 'block'), or shorter windows"
        return (*facts, f"{fact}; {remedy}")

    def errors(self, stage: str) -> Errors:
        """The relative errors, under this name."""
        return Errors(
            stage=stage,
            adapters=tuple(sums.relative for sums in self.adapters.values()),
            interfaces=tuple(sums.relative for sums in self.interfaces.values()),
            output=self.output.relative,
            agreement=self._same_class / self._rows if self._rows else None,
            accuracy=None if self.accuracy is None else self._correct / self._labelled,
            cosine=self._cosines / self._vectors if self._vectors else None,
        )

    def add_output(
        self, output: Any, true: Any, labels: Tensor | None, samples: int, mask: Tensor | None = None
    ) -> None:
        """Take in the output for one batch and what it should be, at the positions that count.

        Raises:
            CalibrationError: a label is none of the network's classes.
        """
        self.samples += samples
        self.uncompared = self.uncompared or whole_numbers(true)
        kind, labels = self._kind, None if labels is None else unmasked(labels, mask)
        values, wanted = dict(named_leaves(output)), dict(named_leaves(true))
        for path, value in values.items():
            ours, theirs = (kind.counted(path, of, mask) for of in (value, wanted[path]))
            self.output.add(ours, theirs)
            if not kind.scores and value.ndim > 1 and value.shape[-1] > 1:
                self._add_cosines(ours, theirs)
        for number, scores in enumerate(kind.scores):
            rows, others = (
                kind.counted(scores.path, scores.rows(of[scores.path]), mask, of_classes=True)
                for of in (values, wanted)
            )
            chosen = rows.argmax(-1)
            self._rows += chosen.numel()
            self._same_class += int((chosen == others.to(rows.device).argmax(-1)).sum())
            if number == 0:
                self._add_labels(rows, others, labels)

    def _add_labels(self, rows: Tensor, others: Tensor, labels: Tensor | None) -> None:
        if labels is None or rows.ndim != 2 or len(rows) != len(labels):
            self._all_labelled = False
        elif len(labels):
            _check_labels(labels, rows.shape[1])
            self._labelled += len(labels)
            self._correct += int(correct(rows, labels.to(rows.device)))
            self._correct_in_sequence += int(correct(others, labels.to(others.device)))

    def _add_cosines(self, value: Tensor, true: Tensor) -> None:
        cosines = torch.cosine_similarity(value.double(), true.to(value.device).double(), dim=-1)
        self._vectors += cosines.numel()
        self._cosines += float(cosines.sum())


@torch.no_grad()
def measure_errors(
    interfaces: Interfaces,
    batches: Iterable[InterfaceValues],
    kind: OutputKind,
    *,
    reference: Iterable[InterfaceValues] | None = None,
) -> ErrorSums:
    """Run the parareal network on all batches and compare it with the network in sequence.

    Args:
        interfaces: those of the network as it is now.
        batches: values of that network; their x, y and z are neither used nor changed.
        kind: what the outputs are.
        reference: values of the same batches by another network, which are the true ones then.

    Raises:
        CalibrationError: the outputs have no numbers that could be compared.
    """
    sums = ErrorSums([window.n for window in interfaces.windows], kind)
    pairs = ((values, values) for values in batches) if reference is None else zip(batches, reference, strict=True)
    for values, true in pairs:
        now = values.anew()
        for window in interfaces.windows:
            interfaces.end(now, window)
            for row in window.adapters:
                sums.adapters[row.index].add(now.x[row.index], true.true[row.m, row.j - 1], now.mask)
            for row in window.adapters:
                _add_without(sums, interfaces, now, true, row.index)
            for segment in window.segments:
                sums.interfaces[segment.index].add(now.z[segment.index], true.true[segment.index], now.mask)
        output = interfaces.result(now)
        sums.add_output(output, true.output, now.labels, now.samples, now.mask)
    if sums.samples and not sums.output.count:
        given = f" ({', '.join(sums.uncompared)})" if sums.uncompared else ""
        raise CalibrationError(
            f"nothing is compared: the network gives no floating-point or complex tensor but a loss{given}; convert a "
            "model that returns the numbers that its outputs are made of, such as logits"
        )
    return sums


def _add_without(
    sums: ErrorSums, interfaces: Interfaces, now: InterfaceValues, true: InterfaceValues, index: Index
) -> None:
    """What z_{m,j} would be without F^{m,j-1}, where that is an identity that no correction is fitted behind."""
    m, j = index
    block = interfaces.coarse((m, j - 1))
    if isinstance(block, nn.Identity) and interfaces.correction(index) is None:
        sums.without.setdefault(index, SquareSums()).add(now.y[index], true.true[index], now.mask)


def _figure(value: float) -> str:
    return f"{value:.2f}"


def _check_labels(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise CalibrationError(
            f"labels go from {low} to {high}, and the network tells {classes} classes (0 to {classes - 1}); "
            f"pass the data that it was trained on, or a network of {high + 1} classes"
        )
