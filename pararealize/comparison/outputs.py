"""Outputs of two networks for the same inputs, batch after batch -> how far apart they are, and how good each is."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from pararealize.analysis.space import Space
from pararealize.calibration.output_kind import OutputKind, Path, class_axis, named_leaves
from pararealize.errors import ExampleError

from .report import Quality

__all__ = ["OutputSums", "compared_tensors"]


def compared_tensors(output: Any) -> dict[Path, Tensor]:
    """The tensors of an output that are compared, by the keys that lead to them, the main one first.

    That is its ``logits`` where it has such, or the first with samples.

    Raises:
        ExampleError: there is none.

    Example:
        >>> import torch
        >>> list(compared_tensors({"loss": torch.zeros(()), "states": torch.zeros(2, 4), "logits": torch.zeros(2, 3)}))
        [('logits',), ('states',)]
    """
    tensors = dict(named_leaves(output))
    if not tensors and isinstance(logits := getattr(output, "logits", None), Tensor):  # of an object of another kind
        tensors = {("logits",): logits}
    if not tensors:
        raise ExampleError(
            f"the network gives {type(output).__name__} without a floating-point or complex tensor but a loss, and "
            "nothing can be compared; convert a model that returns the numbers that its outputs are made of"
        )
    with_samples = (path for path, value in tensors.items() if value.ndim)
    main = ("logits",) if ("logits",) in tensors else next(with_samples, next(iter(tensors)))
    return {main: tensors.pop(main), **tensors}


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
        self._count = self._rows = self._classified = self._same = self._labelled = 0
        self._right, self._loss = [0, 0], [0.0, 0.0]

    def add(
        self,
        first: Any,
        second: Any,
        *,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        samples: int | None = None,
    ) -> None:
        """Add a batch.

        Args:
            first: the original's output.
            second: the other network's.
            labels: one a sample, where there are any.
            mask: which positions ``(batch, tokens)`` count, where not all do.
            samples: how many there are; left out, as many as the main tensor is long.

        Raises:
            ExampleError: the two outputs have not the same shapes, or no numbers.
        """
        pair = [compared_tensors(output) for output in (first, second)]
        shapes = [[tuple(value.shape) for value in tensors.values()] for tensors in pair]
        if shapes[0] != shapes[1]:
            texts = [", ".join(map(str, of)) for of in shapes]
            raise ExampleError(
                f"the original gives {texts[0]} and the network {texts[1]}; pass the model that was converted"
            )
        is_main, main = True, next(iter(pair[0]))
        is_real = main not in dict(named_leaves(first)) or main in dict(named_leaves(first, real=True))
        for (path, y), other in zip(pair[0].items(), pair[1].values(), strict=True):
            y, other = (of.detach().cpu().double() for of in (y, other))
            if is_main and y.ndim > 2 and self._logits and is_real:
                y, other = (of.movedim(class_axis(of, self._space), -1) for of in (y, other))
            counted, other_counted = (self.kind.counted(path, of, mask) for of in (y, other))
            self._count += counted.numel()
            self._squares += float(counted.square().sum())
            self._difference += float((other_counted - counted).square().sum())
            if is_main:
                self.samples += samples if samples is not None else len(y) if y.ndim else 1
                self._add_main(counted, other_counted)
                if is_real:
                    scores = (self.kind.counted(path, of, mask, of_classes=True) for of in (y, other))
                    self._add_classes(*scores, labels=labels)
            is_main = False

    def _add_main(self, y: Tensor, other: Tensor) -> None:
        if y.ndim and len(y):
            flat, other_flat = y.reshape(len(y), -1), other.reshape(len(y), -1)
            self._cosines += float(functional.cosine_similarity(flat, other_flat).sum())
            self._rows += len(flat)

    def _add_classes(self, y: Tensor, other: Tensor, *, labels: Tensor | None) -> None:
        is_labelled = labels is not None and y.ndim == 2 and len(labels) == len(y) and _fit(labels, y.shape[1])
        if y.ndim and (self._logits or (self._logits is None and is_labelled)):
            same = y.argmax(-1) == other.argmax(-1)
            self._classified += same.numel()
            self._same += int(same.sum())
            if labels is not None and is_labelled:
                self._score(y, other, labels.cpu())

    def _score(self, y: Tensor, other: Tensor, labels: Tensor) -> None:
        self._labelled += len(labels)
        for which, logits in enumerate((y, other)):
            self._right[which] += int((logits.argmax(1) == labels).sum())
            self._loss[which] += float(functional.cross_entropy(logits, labels, reduction="sum"))

    @property
    def relative_error(self) -> float:
        """``‖other − original‖ / ‖original‖`` over all tensors; infinite where the original gives zeros alone.

        Raises:
            ExampleError: nothing was compared.
        """
        if not self._count:
            raise ExampleError(
                "nothing is compared: the masks leave out every position of the batches, or their outputs are empty; "
                "pass batches of which something counts"
            )
        return math.sqrt(self._difference / self._squares) if self._squares else math.inf

    @property
    def cosine(self) -> float:
        """The mean over samples (over positions that count, of sequences) of the cosine of the main tensors.

        NaN where they are single numbers.
        """
        return self._cosines / self._rows if self._rows else math.nan

    @property
    def same_class(self) -> float | None:
        """The share with the same largest logit; ``None`` where outputs are no logits."""
        return self._same / self._classified if self._classified else None

    def quality(self, which: int) -> Quality | None:
        """Of the original (0) or the other network (1); ``None`` without labels."""
        if not self._labelled:
            return None
        return Quality(accuracy=self._right[which] / self._labelled, loss=self._loss[which] / self._labelled)


def _fit(labels: Tensor, classes: int) -> bool:
    """Whether labels are numbers of that many classes, of which one alone would say nothing."""
    return classes > 1 and bool(((labels >= 0) & (labels < classes)).all())
