r"""Outputs of a student and of its teacher -> how far the one is from the other, a number with gradients.

With student outputs s and the teacher's t, at the positions that count:

    "kl"             :math:`T^2 \sum_c p_c (\log p_c - \log q_c)`, with p and q the softmax of t / T and of s / T
    "cross_entropy"  half the cross-entropy with the labels, and half that with the teacher's softmax
    "cosine"         :math:`1 - \cos(s, t)`, along the last axis
    "mse"            :math:`\sum \|s - t\|^2 / \sum \|t\|^2`
    a callable       what it gives for the two outputs, and for the batch where it takes three arguments

each a mean over samples and positions, "mse" over the batch, and over the tensors of an output that has several.

Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (the factor T² keeps gradients as large
at every temperature).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize.errors import CalibrationError

from .masks import unmasked
from .output_kind import OutputKind, Path, named_leaves

__all__ = ["LossFunction", "LossName", "OutputLoss", "choose_loss", "relative_error"]

LossFunction: TypeAlias = Callable[..., Any]
LossName: TypeAlias = Literal["auto", "kl", "cross_entropy", "cosine", "mse"]

UNIT = 1e-3  # relative deviation of the norms of vectors that are said to be of one length


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputLoss:
    """A loss that was chosen.

    Attributes:
        name: as above; of a callable its own name.
        why: what chose it.
        kind: what the outputs are.
        temperature: T.
        label_smoothing: of the labels' one-hot vectors.
        function: where it is the caller's.
    """

    name: str
    why: str
    kind: OutputKind
    temperature: float = 1.0
    label_smoothing: float = 0.0
    function: LossFunction | None = None

    def __call__(self, student: Any, teacher: Any, batch: Any, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """The loss of one batch.

        Raises:
            CalibrationError: the outputs do not have the same tensors; the caller's function gives no number with
                gradients; labels are missing, or none of the classes.
        """
        if self.function is not None:
            return self._own(student, teacher, batch)
        values, wanted = dict(named_leaves(student)), dict(named_leaves(teacher))
        _check_same(values, wanted)
        if self.name in ("kl", "cross_entropy"):
            return self._of_classes(values, wanted, labels, mask)
        vector = _cosine_distance if self.name == "cosine" else relative_error
        losses = []
        for path, value in values.items():
            function = vector if value.ndim > 1 and value.shape[-1] > 1 else relative_error
            s, t = (self.kind.counted(path, of, mask) for of in (value, wanted[path].to(value.device)))
            wide = torch.promote_types(s.dtype, torch.float32)
            losses.append(function(s.to(wide), t.to(wide)))
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()

    def _of_classes(
        self, values: dict[Path, Tensor], wanted: dict[Path, Tensor], labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        losses, labels = [], None if labels is None else unmasked(labels, mask)  # of samples that a mask leaves in
        for scores in self.kind.scores:
            rows = (scores.log_scores(of[scores.path]) for of in (values, wanted))
            s, t = (self.kind.counted(scores.path, of, mask, of_classes=True) for of in rows)
            t = t.to(s.device)
            if self.name == "kl":
                losses.append(_kl(s, t, self.temperature))
                continue
            if labels is None or s.ndim != 2 or len(labels) != len(s):
                raise CalibrationError(
                    f"loss='cross_entropy' needs a label a sample, and a batch of {len(s)} outputs has "
                    f"{'none' if labels is None else len(labels)}; pass (inputs, labels), or loss='kl'"
                )
            if not len(s):
                losses.append(s.sum())  # nought, with gradients
                continue
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= s.shape[1]:
                raise CalibrationError(
                    f"labels go from {low} to {high}, and the network tells {s.shape[1]} classes; pass the labels of "
                    "the data that it was trained on, or loss='kl'"
                )
            least, chosen = torch.finfo(s.dtype).min, s.gather(1, labels.to(s.device)[:, None])
            if bool((chosen == least).any()):
                raise CalibrationError(
                    "a label is at a position that the mask excludes; pass labels among the positions that count"
                )
            hard = _smoothed(s, labels.to(s.device), self.label_smoothing)
            losses.append((hard + functional.cross_entropy(s, t.softmax(-1))) / 2)
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()

    def _own(self, student: Any, teacher: Any, batch: Any) -> Tensor:
        assert self.function is not None
        arguments = (student, teacher, batch) if _takes_three(self.function) else (student, teacher)
        loss = self.function(*arguments)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise CalibrationError(
                f"the loss {self.name} gives {what}; return one number with gradients, such as a mean"
            )
        return loss.reshape(())


def _smoothed(s: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The cross entropy with (1 - ε) at the label and ε / classes at each class; excluded positions are no classes."""
    if not smoothing:
        return functional.cross_entropy(s, labels)
    logs, counts = s.log_softmax(-1), s > torch.finfo(s.dtype).min
    even = -logs.masked_fill(~counts, 0.0).sum(-1) / counts.sum(-1)
    return (1 - smoothing) * functional.nll_loss(logs, labels) + smoothing * even.mean()


def choose_loss(
    loss: LossName | LossFunction,
    kind: OutputKind,
    teacher: Any,
    *,
    mask: Tensor | None = None,
    has_labels: bool = False,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> OutputLoss:
    """The loss that the caller asked for, or that outputs call for: ``"kl"`` between classes, else ``"mse"``.

    Vectors that all have one length are compared by ``"cosine"``.

    Args:
        loss: a name, ``"auto"``, or a function of the student's and the teacher's output, and of the batch where it
            takes three arguments.
        kind: what the outputs are.
        teacher: the teacher's output for a batch.
        mask: which of its positions count.
        has_labels: whether the batches have a label a sample.
        temperature: of ``"kl"``.
        label_smoothing: of ``"cross_entropy"``.

    Raises:
        CalibrationError: ``"kl"`` or ``"cross_entropy"`` of outputs that are no classes, the latter without labels.
    """
    if not isinstance(loss, str):
        return OutputLoss(
            name=getattr(loss, "__name__", type(loss).__name__), why="as asked for", kind=kind, function=loss
        )
    if not any(True for _ in named_leaves(teacher)):
        raise CalibrationError(
            "the network gives no floating-point or complex tensor to compare, but for a loss; convert a model that "
            "returns the numbers that its outputs are made of, such as logits"
        )
    name, why = loss, "as asked for"
    if loss == "auto" and kind.scores:
        name, why = "kl", kind.why
    elif loss == "auto":
        leaves = named_leaves(teacher)
        of_one_length = all(_has_one_length(kind.counted(path, value, mask)) for path, value in leaves)
        name, why = ("cosine", "the outputs are vectors of one length") if of_one_length else ("mse", kind.why)
    if name in ("kl", "cross_entropy") and not kind.scores:
        raise CalibrationError(
            f"loss={name!r} compares classes, and the outputs are none ({kind.why}); pass loss='mse' or 'cosine'"
        )
    if name == "cross_entropy" and not has_labels:
        raise CalibrationError(
            "loss='cross_entropy' needs labels, and the batches have no integer a sample; pass (inputs, labels), or "
            "dicts with 'labels', or loss='kl'"
        )
    return OutputLoss(name=name, why=why, kind=kind, temperature=temperature, label_smoothing=label_smoothing)


def relative_error(value: Tensor, true: Tensor) -> Tensor:
    """``‖value - true‖² / ‖true‖²``, 0 where there is nothing.

    Example:
        >>> float(relative_error(torch.tensor([3.0, 0.0]), torch.tensor([2.0, 0.0])))
        0.25
    """
    return (value - true).square().sum() / true.square().sum().clamp(min=torch.finfo(true.dtype).tiny)


def _kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    log_q, log_p = (of.div(temperature).log_softmax(-1) for of in (s, t))
    p = log_p.exp()
    difference = (log_p - log_q).masked_fill(p == 0, 0.0)  # classes that the teacher rules out by -inf
    return temperature**2 * (p * difference).sum() / max(s[..., 0].numel(), 1)


def _cosine_distance(s: Tensor, t: Tensor) -> Tensor:
    """1 - cos as half the squared distance of unit vectors, which is exactly 0 where they are equal."""
    difference = functional.normalize(s, dim=-1) - functional.normalize(t, dim=-1)
    return difference.square().sum() / 2 / max(s[..., 0].numel(), 1)


def _has_one_length(vectors: Tensor) -> bool:
    if vectors.ndim < 2 or vectors.shape[-1] < 2 or vectors[..., 0].numel() < 2:
        return False
    norms = vectors.double().norm(dim=-1)
    return bool(norms.std() <= UNIT * norms.mean()) and bool(norms.mean() > 0)


def _check_same(values: dict[Path, Tensor], wanted: dict[Path, Tensor]) -> None:
    shapes = [{path: tuple(value.shape) for path, value in of.items()} for of in (values, wanted)]
    if shapes[0] != shapes[1] or not values:
        listed = [_listed(of) for of in shapes]
        raise CalibrationError(
            f"the network gives {listed[0]} and its teacher {listed[1]}; pass a teacher with the same outputs, or a "
            "loss (student_output, teacher_output) -> number of your own"
        )


def _listed(shapes: dict[Path, tuple[int, ...]]) -> str:
    names = (f"{'.'.join(map(str, path)) or 'output'} {shape}" for path, shape in shapes.items())
    return ", ".join(names) or "nothing"


def _takes_three(function: LossFunction) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a builtin without a signature
        return False
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return not isinstance(function, nn.Module) or _takes_three(function.forward)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in parameters) >= 3
