"""Outputs of two networks for the same inputs, batch after batch -> how far apart they are, and how good each is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from pararealize.analysis.space import Space
from pararealize.calibration.output_kind import OutputKind, class_axis, named_leaves
from pararealize.errors import ExampleError
from pararealize.tracing.containers import leaves_of

from .report import Quality

__all__ = ["OutputSums", "main_output"]


def main_output(output: Any) -> Tensor:
    """The tensor of an output that is compared: its ``logits`` where it has such, or the first of numbers.

    Raises:
        ExampleError: there is none.

    Example:
        >>> import torch
        >>> main_output({"loss": torch.tensor(1.0), "logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    tensors = [leaf for leaf in leaves_of(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not tensors:
        raise ExampleError(
            f"the network gives {type(output).__name__} without a tensor of numbers, and nothing can be compared"
        )
    return tensors[0]


class OutputSums:
    """Sums over samples, in double precision.

    Args:
        logits: whether outputs are logits; ``None`` where labels that fit them say so.
        space: of what the network's head reads.

    Attributes:
        kind: which tensors of an output have one number a position; none unless it is set.
    """

    def __init__(self, *, logits: bool | None = None, space: Space | None = None) -> None:
        self._logits, self._space = logits, space
        self.kind = OutputKind(scores=(), why="")
        self.samples = 0
        self._squares = self._difference = self._cosines = 0.0
        self._rows = self._classified = self._same = self._labelled = 0
        self._right, self._loss = [0, 0], [0.0, 0.0]

    def add(self, first: Any, second: Any, *, labels: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            first: the original's output.
            second: the other network's.
            labels: one a sample, where there are any.
            mask: which positions ``(batch, tokens)`` count, where not all do.

        Raises:
            ExampleError: the two outputs have not the same shape, or no numbers.
        """
        y, other = (main_output(output).detach().cpu().double() for output in (first, second))
        if y.shape != other.shape or not y.ndim:
            raise ExampleError(f"the original gives {tuple(y.shape)} and the network {tuple(other.shape)}")
        self.samples += len(y)
        if y.ndim > 2 and self._logits:
            y, other = (of.movedim(class_axis(of, self._space), -1) for of in (y, other))
        mask = mask if y.ndim == 3 or (mask is not None and y.shape == mask.shape) else None
        path = _path_of_main(first)
        scores, others = (self.kind.counted(path, of, mask, of_classes=True) for of in (y, other))
        y, other = (self.kind.counted(path, of, mask) for of in (y, other))
        flat, other_flat = y.reshape(len(y), -1), other.reshape(len(y), -1)
        self._squares += float(flat.square().sum())
        self._difference += float((other_flat - flat).square().sum())
        self._cosines += float(functional.cosine_similarity(flat, other_flat).sum())
        self._rows += len(flat)
        is_labelled = labels is not None and y.ndim == 2 and len(labels) == len(y) and _fit(labels, y.shape[1])
        if self._logits or (self._logits is None and is_labelled):
            same = scores.argmax(-1) == others.argmax(-1)
            self._classified += same.numel()
            self._same += int(same.sum())
            if labels is not None and is_labelled:
                self._score(scores, others, labels.cpu())

    def _score(self, y: Tensor, other: Tensor, labels: Tensor) -> None:
        self._labelled += len(labels)
        for which, logits in enumerate((y, other)):
            self._right[which] += int((logits.argmax(1) == labels).sum())
            self._loss[which] += float(functional.cross_entropy(logits, labels, reduction="sum"))

    @property
    def relative_error(self) -> float:
        """``‖other − original‖ / ‖original‖`` over all samples; infinite where the original gives zeros alone."""
        return math.sqrt(self._difference / self._squares) if self._squares else math.inf

    @property
    def cosine(self) -> float:
        """The mean over samples (over positions that count, of sequences) of the cosine between both outputs."""
        return self._cosines / max(1, self._rows)

    @property
    def same_class(self) -> float | None:
        """The share with the same largest logit; ``None`` where outputs are no logits."""
        return self._same / self._classified if self._classified else None

    def quality(self, which: int) -> Quality | None:
        """Of the original (0) or the other network (1); ``None`` without labels."""
        if not self._labelled:
            return None
        return Quality(accuracy=self._right[which] / self._labelled, loss=self._loss[which] / self._labelled)


def _path_of_main(output: Any) -> tuple[Any, ...]:
    main = main_output(output)
    return next((path for path, value in named_leaves(output) if value is main), ())


def _fit(labels: Tensor, classes: int) -> bool:
    """Whether labels are numbers of that many classes, of which one alone would say nothing."""
    return classes > 1 and bool(((labels >= 0) & (labels < classes)).all())
