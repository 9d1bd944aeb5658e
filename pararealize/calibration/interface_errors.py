"""Crossings -> how far a parareal network is from the network in sequence, at every interface and in the output."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pararealize.errors import CalibrationError
from pararealize.train.run.score import correct, logits_of

from .interfaces import Crossing, Interfaces
from .report import Errors

__all__ = ["Measured", "measure"]


class Measured:
    """Sums over all samples."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.squares: dict[str, list[float]] = {}
        self.samples = self.same = self.right = self.right_before = 0
        self.logits = self.labels = True

    @property
    def accuracy(self) -> float | None:
        """Of the network in sequence."""
        return self.right_before / self.samples if self.labels else None

    def errors(self, stage: str) -> Errors:
        """The relative errors, under this name."""
        return Errors(
            stage=stage,
            adapters=tuple(self._relative(f"x{j}") for j in range(2, self.n + 1)),
            interfaces=tuple(self._relative(f"z{j}") for j in range(1, self.n + 1)),
            output=self._relative("output"),
            agreement=self.same / self.samples if self.logits else None,
            accuracy=self.right / self.samples if self.labels else None,
        )

    def value(self, name: str, value: Tensor, true: Tensor) -> None:
        """Take in one value and what it should be."""
        sums = self.squares.setdefault(name, [0.0, 0.0])
        true = true.to(value.device).double()
        sums[0] += (value.double() - true).square().sum().item()
        sums[1] += true.square().sum().item()

    def output(self, output: Any, true: Any, labels: Tensor | None, samples: int) -> None:
        """Take in the outputs of one batch."""
        for value, other in zip(pytree.tree_leaves(output), pytree.tree_leaves(true), strict=True):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.value("output", value, other)
        self.samples += samples
        ours, theirs = _logits(output, samples), _logits(true, samples)
        if ours is None or theirs is None:
            self.logits = self.labels = False
            return
        theirs = theirs.to(ours.device)
        self.same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        if labels is None:
            self.labels = False
            return
        _check_labels(labels, ours.shape[1])
        labels = labels.to(ours.device)
        self.right += int(correct(ours, labels))
        self.right_before += int(correct(theirs, labels))

    def _relative(self, name: str) -> float:
        error, whole = self.squares[name]
        if not error:
            return 0.0
        return math.sqrt(error / whole) if whole else math.inf


@torch.no_grad()
def measure(
    interfaces: Interfaces, crossings: Iterable[Crossing], *, reference: Iterable[Crossing] | None = None
) -> Measured:
    """Run the parareal network on all crossings and compare.

    Args:
        interfaces: of the network as it is now.
        crossings: of it; their x, y and z are neither used nor kept.
        reference: crossings of the same batches by another network, whose values are the true ones.
    """
    measured = Measured(interfaces.n)
    pairs = ((c, c) for c in crossings) if reference is None else zip(crossings, reference, strict=True)
    for crossing, true in pairs:
        saved = crossing.x, crossing.y, crossing.z
        crossing.x, crossing.y, crossing.z = {}, {}, {}
        interfaces.fine(crossing)
        output = interfaces.result(crossing)
        for j, x in crossing.x.items():
            measured.value(f"x{j}", x, true.true[j - 1])
        for j, z in crossing.z.items():
            measured.value(f"z{j}", z, true.true[j])
        measured.output(output, true.output, crossing.labels, crossing.samples)
        crossing.x, crossing.y, crossing.z = saved
    return measured


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
