"""InterfaceValues -> ErrorSums: how far a parareal network is from the network in sequence, interface by interface."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pararealize.errors import CalibrationError
from pararealize.train.run.score import correct, logits_of

from .batch import unmasked
from .interfaces import Interfaces, InterfaceValues
from .rows import Errors, indices

__all__ = ["ErrorSums", "SquareSums", "measure_errors"]


@dataclasses.dataclass(slots=True)
class SquareSums:
    """‖value − true‖² and ‖true‖², summed over all samples in double precision."""

    error: float = 0.0
    whole: float = 0.0

    def add(self, value: Tensor, true: Tensor, mask: Tensor | None = None) -> None:
        """Take in one value and what it should be, at the tokens that count."""
        value, true = unmasked(value, mask), unmasked(true, mask).to(value.device).double()
        self.error += (value.double() - true).square().sum().item()
        self.whole += true.square().sum().item()

    @property
    def relative(self) -> float:
        """‖value − true‖ / ‖true‖; infinite where only the true value is zero."""
        if not self.error:
            return 0.0
        return math.sqrt(self.error / self.whole) if self.whole else math.inf


class ErrorSums:
    """Errors of a network and its hits in classification, summed over all samples.

    Args:
        windows: how many segments each window has.

    Attributes:
        adapters: sums for x_{m,j}, j > 1, by (m, j).
        interfaces: sums for z_{m,j}, by (m, j).
        output: sums for the network's output, of all its floating-point tensors.
        samples: how many samples were taken in.
    """

    def __init__(self, windows: Sequence[int]) -> None:
        self.interfaces = {index: SquareSums() for index in indices(windows)}
        self.adapters = {(m, j): SquareSums() for m, j in self.interfaces if j > 1}
        self.output = SquareSums()
        self.samples = 0
        self._same_class = self._correct = self._correct_in_sequence = 0
        self._has_logits = self._has_labels = True

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the network in sequence; None without labels."""
        return self._correct_in_sequence / self.samples if self._has_labels else None

    def errors(self, stage: str) -> Errors:
        """The relative errors, under this name."""
        return Errors(
            stage=stage,
            adapters=tuple(sums.relative for sums in self.adapters.values()),
            interfaces=tuple(sums.relative for sums in self.interfaces.values()),
            output=self.output.relative,
            agreement=self._same_class / self.samples if self._has_logits else None,
            accuracy=self._correct / self.samples if self._has_labels else None,
        )

    def add_output(
        self, output: Any, true: Any, labels: Tensor | None, samples: int, mask: Tensor | None = None
    ) -> None:
        """Take in the output for one batch and what it should be, at the tokens that count.

        Raises:
            CalibrationError: a label is none of the network's classes.
        """
        for value, other in zip(pytree.tree_leaves(output), pytree.tree_leaves(true), strict=True):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.output.add(value, other, mask)
        self.samples += samples
        logits, true_logits = _logits(output, samples), _logits(true, samples)
        if logits is None or true_logits is None:
            self._has_logits = self._has_labels = False
            return
        true_logits = true_logits.to(logits.device)
        self._same_class += int((logits.argmax(1) == true_logits.argmax(1)).sum())
        if labels is None:
            self._has_labels = False
            return
        _check_labels(labels, logits.shape[1])
        labels = labels.to(logits.device)
        self._correct += int(correct(logits, labels))
        self._correct_in_sequence += int(correct(true_logits, labels))


@torch.no_grad()
def measure_errors(
    interfaces: Interfaces, batches: Iterable[InterfaceValues], *, reference: Iterable[InterfaceValues] | None = None
) -> ErrorSums:
    """Run the parareal network on all batches and compare it with the network in sequence.

    Args:
        interfaces: those of the network as it is now.
        batches: values of that network; their x, y and z are neither used nor changed.
        reference: values of the same batches by another network, which are the true ones then.
    """
    sums = ErrorSums([window.n for window in interfaces.windows])
    pairs = ((values, values) for values in batches) if reference is None else zip(batches, reference, strict=True)
    for values, true in pairs:
        now = values.anew()
        for window in interfaces.windows:
            interfaces.end(now, window)
            for row in window.adapters:
                sums.adapters[row.index].add(now.x[row.index], true.true[row.m, row.j - 1], now.mask)
            for segment in window.segments:
                sums.interfaces[segment.index].add(now.z[segment.index], true.true[segment.index], now.mask)
        output = interfaces.result(now)
        sums.add_output(output, true.output, now.labels, now.samples, now.mask)
    return sums


def _logits(output: Any, samples: int) -> Tensor | None:
    """The logits in an output, where it has any."""
    try:
        return logits_of(output, torch.empty(samples))
    except ValueError:
        return None


def _check_labels(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise CalibrationError(
            f"labels go from {low} to {high}, and the network tells {classes} classes (0 to {classes - 1}); "
            f"pass the data that it was trained on, or a network of {high + 1} classes"
        )
