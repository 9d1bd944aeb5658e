"""A network, batches with labels -> OutputKind: whether an output is scores of classes, which tensor, in what form.

Nothing is taken for a classification because of its shape. It is one where the caller says so, where the model says so
(a softmax or a cross entropy on the way to the output, an output called ``logits``), or where labels show it: the
trained network's largest output meets them more often than chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from pararealize.analysis.space import Space
from pararealize.errors import CalibrationError
from pararealize.network.module import PararealModule
from pararealize.table import share
from pararealize.tracing.containers import items_of
from pararealize.tracing.network_piece import contents_of

from .masks import unmasked

__all__ = [
    "ClassScores",
    "LabelEvidence",
    "OutputKind",
    "Outputs",
    "class_axis",
    "find_output_kind",
    "named_leaves",
    "position_outputs",
    "whole_numbers",
]

Outputs: TypeAlias = Literal["auto", "logits", "values"]
Form: TypeAlias = Literal["logits", "probabilities", "log-probabilities"]
Path: TypeAlias = tuple[Any, ...]

SURE = 3.0  # standard errors by which labels have to be met more often than by chance
LEAST_KAPPA = 0.1
_SOFTMAX = {torch.softmax, torch.nn.functional.softmax, torch.special.softmax, "softmax"}
_LOG_SOFTMAX = {torch.log_softmax, torch.nn.functional.log_softmax, torch.special.log_softmax, "log_softmax"}
_CROSS_ENTROPY = {functional.cross_entropy, torch._C._nn.cross_entropy_loss}
_SAME_VALUES = {"view", "reshape", "squeeze", "unsqueeze", "flatten", "contiguous", "clone", "float", "double", "to",
                torch.reshape, torch.squeeze, torch.unsqueeze, torch.flatten, torch.clone}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """A tensor of an output with a number a class.

    Attributes:
        path: the keys that lead to it in the output; empty where it is the output itself.
        form: what these numbers are.
        axis: the axis of the classes, counted from the front.
    """

    path: Path
    form: Form
    axis: int

    def rows(self, value: Tensor) -> Tensor:
        """The same with the classes last: ``(batch, …, classes)``."""
        return value.movedim(self.axis, -1)

    def log_scores(self, value: Tensor) -> Tensor:
        """The same as logarithms of probabilities, but for what a softmax takes away; in single precision at least."""
        rows = self.rows(value).to(torch.promote_types(value.dtype, torch.float32))
        return rows.clamp(min=torch.finfo(rows.dtype).tiny).log() if self.form == "probabilities" else rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputKind:
    """What an output is.

    Attributes:
        scores: its tensors of classes; empty where it is no classification.
        why: what says so.
        by_position: its tensors with one number a position, ``(batch, length)``.
    """

    scores: tuple[ClassScores, ...]
    why: str
    by_position: frozenset[Path] = frozenset()

    def counted(self, path: Path, value: Tensor, mask: Tensor | None, *, of_classes: bool = False) -> Tensor:
        """A tensor of the output, at the positions that count.

        Of one number a position, those that do not are nought, or the least number where positions are the classes.
        """
        if mask is None or path not in self.by_position or value.shape != mask.shape:
            return unmasked(value, mask)
        return value.masked_fill(~mask.to(value.device), torch.finfo(value.dtype).min if of_classes else 0.0)


class LabelEvidence:
    """How often the largest number of an output is at the label, and how often it would be by chance.

    Example:
        >>> evidence = LabelEvidence()
        >>> evidence.add(torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5))
        >>> evidence.shows_classes
        True
    """

    def __init__(self) -> None:
        self._labels = self._predicted = torch.zeros(0, dtype=torch.int64)
        self.count = self.hits = 0
        self.given = False  # there are labels at all
        self.fits = True  # and none beyond the output's numbers

    def add(self, output: Any, labels: Tensor | None, mask: Tensor | None = None) -> None:
        """Take in a batch of the original's outputs and its labels; without labels nothing is said.

        Args:
            output: of the original.
            labels: of the batch.
            mask: which samples, or positions of them, count; labels are of samples.
        """
        self.given = self.given or labels is not None
        leaves = [value for _, value in named_leaves(output, real=True)]
        values = leaves[0] if len(leaves) == 1 else None
        if labels is None or values is None or values.ndim != 2 or len(values) != len(labels) or not len(labels):
            return
        if mask is not None and mask.ndim == 1:
            labels, values = unmasked(labels, mask), unmasked(values, mask)
        labels, predicted, classes = labels.cpu(), values.argmax(1).cpu(), values.shape[1]
        if not len(labels):
            return
        if classes < 2 or int(labels.min()) < 0 or int(labels.max()) >= classes:
            self.fits = False
            return
        self.count += len(labels)
        self.hits += int((labels == predicted).sum())
        most = max(classes, len(self._labels))
        self._labels = _added(self._labels, labels, most)
        self._predicted = _added(self._predicted, predicted, most)

    @property
    def shows_classes(self) -> bool:
        r"""Whether Cohen's :math:`\kappa = (p_o - p_e) / (1 - p_e)` is above chance, by three standard errors at least.

        :math:`p_o` is the share of hits, :math:`p_e = \sum_c p_c q_c` that of outputs as common, but independent of the
        labels; of independent ones :math:`\kappa` has the standard error :math:`\sqrt{p_e / (1 - p_e) / n}`.
        """
        if not self.count or not self.fits:
            return False
        chance = float((self._labels.double() / self.count * (self._predicted.double() / self.count)).sum())
        if chance >= 1:
            return False
        kappa = (self.hits / self.count - chance) / (1 - chance)
        return kappa > max(LEAST_KAPPA, SURE * math.sqrt(chance / (1 - chance) / self.count))


def find_output_kind(
    net: PararealModule, output: Any, outputs: Outputs, evidence: LabelEvidence, reads: tuple[Any, ...] = ()
) -> OutputKind:
    """What the outputs of a network are.

    Args:
        net: the converted network.
        output: what its original gives for a batch.
        outputs: what the caller says.
        evidence: what labels show.
        reads: what its head reads, see :func:`position_outputs`.

    Raises:
        CalibrationError: the outputs are said to be logits, and no tensor among them has several classes.
    """
    kind = _kind_of_scores(net, output, outputs, evidence)
    return dataclasses.replace(kind, by_position=position_outputs(net, reads, output))


@torch.no_grad()
def position_outputs(net: PararealModule, reads: tuple[Any, ...] = (), output: Any = None) -> frozenset[Path]:
    """The tensors of an output with one number a position of a sequence: ``(batch, length)``.

    They follow what the head reads at one end, and at the other do not: scores of as many classes as there are
    positions follow it everywhere, or nowhere.

    Args:
        net: the network, in eval mode.
        reads: what its head reads for a batch: an activation, and context. Left out, random numbers; of a head that
            reads context nothing is known then.
        output: what it gave for some batch: where nothing in it has these axes, nothing is tried.
    """
    space = net.plan.segments[-1].y
    has_such = output is None or any(value.ndim == len(space.shape) for _, value in named_leaves(output))
    if not space.channels_last or not has_such:
        return frozenset()
    if not reads and len(net.part_graphs["head"].find_nodes(op="placeholder")) == 1:
        like = next(contents_of(net.head).parameters(), next(net.parameters()))
        reads = (torch.randn(2, *space.shape, generator=torch.Generator().manual_seed(0)).to(like),)
    if not reads:
        return frozenset()
    first, last = ((slice(None), *[place] * len(space.extent)) for place in (0, -1))
    try:
        plain = _by_shape(net, reads)
        at_first, at_last = (_by_shape(net, reads, at=end) if plain else {} for end in (first, last))
    except Exception:  # noqa: BLE001 - whatever a head raises that takes no other numbers
        return frozenset()

    def follows(path: Path, changed: Mapping[Path, Tensor], end: Any) -> bool:
        return bool((changed[path][end] != plain[path][end]).any())

    return frozenset(
        path
        for path in plain
        if (follows(path, at_first, first) or follows(path, at_last, last))
        and not (follows(path, at_first, last) or follows(path, at_last, first))
    )


def _by_shape(net: PararealModule, reads: tuple[Any, ...], at: Any = None) -> dict[Path, Tensor]:
    """The head's outputs of the shape of positions, where it reads other numbers in some place."""
    z = reads[0].clone()
    if at is not None:
        z[at] += torch.randn(z[at].shape, generator=torch.Generator().manual_seed(1)).to(z) * z.std()
    return {path: value for path, value in named_leaves(net.head(z, *reads[1:])) if value.shape == z.shape[:-1]}


def _kind_of_scores(net: PararealModule, output: Any, outputs: Outputs, evidence: LabelEvidence) -> OutputKind:
    """What is a classification, and why."""
    if outputs == "values":
        return OutputKind(scores=(), why="as asked for")
    leaves, space = dict(named_leaves(output, real=True)), net.plan.segments[-1].y
    axes = {path: class_axis(value, space) for path, value in leaves.items() if value.ndim > 1}
    wide = {path: leaves[path] for path, axis in axes.items() if leaves[path].shape[axis] > 1}
    softmaxed, has_loss = _read_head(net)
    scores = [
        ClassScores(path=path, form=form, axis=axes[path] if axis is None else axis % wide[path].ndim)
        for path, (form, axis) in softmaxed.items()
        if path in wide and (axis is None or -wide[path].ndim <= axis < wide[path].ndim)
    ]
    if scores:
        return OutputKind(scores=tuple(scores), why="the model ends in a softmax")
    if named := [path for path in wide if path and str(path[-1]).endswith("logits")]:
        return OutputKind(scores=_logits(axes, named), why=f"an output of the model is called {named[0][-1]!r}")
    if outputs == "logits":
        if not wide:
            shapes = ", ".join(str(tuple(value.shape)) for value in leaves.values()) or "no tensor"
            raise CalibrationError(
                f"the outputs are said to be logits, and the network gives {shapes}; pass outputs='values', or a loss "
                "for values ('mse', 'cosine')"
            )
        return OutputKind(scores=_logits(axes, wide), why="as asked for")
    if has_loss and len(wide) == 1:
        return OutputKind(scores=_logits(axes, wide), why="the model has a cross entropy")
    if evidence.shows_classes and len(wide) == 1:
        hits = share(evidence.hits / evidence.count, 0)
        return OutputKind(
            scores=_logits(axes, wide), why=f"the largest output is at the label in {hits} of the samples"
        )
    if evidence.given:
        return OutputKind(scores=(), why="its largest number is at the label no more often than chance has it")
    return OutputKind(scores=(), why="nothing says that it is a classification")


def named_leaves(output: Any, *, real: bool = False) -> Iterator[tuple[Path, Tensor]]:
    """The tensors of an output that can be compared, with the keys that lead to them; a ``loss`` is no output.

    These are floating-point tensors, and complex ones as pairs of real numbers: ``(…, 2)``.

    Args:
        output: of a network.
        real: leave complex ones out, as no classes are told by these.

    Example:
        >>> [(path, value.shape) for path, value in named_leaves({"z": torch.zeros(3, dtype=torch.complex64)})]
        [(('z',), torch.Size([3, 2]))]
    """
    for path, value in _tensors(output, ()):
        if value.is_floating_point():
            yield path, value
        elif value.is_complex() and not real:
            yield path, torch.view_as_real(value.resolve_conj())


def whole_numbers(output: Any) -> list[str]:
    """The tensors of an output that are compared with nothing, as texts: integers and booleans."""
    return [
        f"{'.'.join(map(str, path)) or 'the output'} of {value.dtype}"
        for path, value in _tensors(output, ())
        if not value.is_floating_point() and not value.is_complex()
    ]


def _tensors(output: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    items = items_of(output)
    if items is None and isinstance(output, Tensor):
        yield path, output
    for step, item in items or ():
        if step.key != "loss":
            yield from _tensors(item, (*path, step.key))


def class_axis(value: Tensor, space: Space | None = None) -> int:
    """The axis of classes: where the others are the positions of what the head reads; else as is usual.

    Of vectors and sequences that is the last, of maps ``(batch, classes, height, width)`` the first behind the batch,
    of signals that where the channels are in front of the head.

    Args:
        value: scores of classes, ``(batch, …)``.
        space: of what the head reads.

    Example:
        >>> class_axis(torch.zeros(2, 3, 50), Space(shape=(16, 50), channel=0))
        1
        >>> class_axis(torch.zeros(2, 50, 3), Space(shape=(50, 16), channel=1))
        2
    """
    last = value.ndim - 1
    if last < 2:
        return last
    usual = 1 if last > 2 else last
    if space is None or len(space.shape) != last:
        return usual
    fits = {1: value.shape[2:] == space.extent, last: value.shape[1:-1] == space.extent}
    if fits[1] != fits[last]:
        return 1 if fits[1] else last
    return (last if space.channels_last else 1) if fits[1] or last == 2 else usual


def _logits(axes: Mapping[Path, int], paths: Any) -> tuple[ClassScores, ...]:
    return tuple(ClassScores(path=path, form="logits", axis=axes[path]) for path in paths)


def _read_head(net: PararealModule) -> tuple[dict[Path, tuple[Form, int | None]], bool]:
    """The outputs behind a softmax: what they are, and the axis, None where reshaped; whether there is a loss."""
    graph = net.part_graphs["head"]
    softmaxed: dict[Path, tuple[Form, int | None]] = {}
    for path, node in _output_nodes(graph.output_node().args[0], ()):
        reshaped = False
        while node.all_input_nodes and node.target in _SAME_VALUES:
            node, reshaped = node.all_input_nodes[0], True
        if (kind := _softmax_of(node, net)) is not None:
            softmaxed[path] = kind[0], None if reshaped else kind[1]
    return softmaxed, any(node.target in _CROSS_ENTROPY for node in graph.nodes)


def _output_nodes(value: Any, path: Path) -> Iterator[tuple[Path, fx.Node]]:
    """The nodes of an output's tensors; where a class of the model's puts them together, by its arguments' names."""
    if isinstance(value, fx.Node):
        if isinstance(value.target, type):
            value = dict(value.kwargs) | dict(enumerate(value.args))
        else:
            yield path, value
            return
    if isinstance(value, Mapping):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for key, item in items:
        yield from _output_nodes(item, (*path, key))


def _softmax_of(node: fx.Node, net: nn.Module) -> tuple[Form, int] | None:
    dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    target: Any = node.target
    if node.op == "call_module":
        module = net.get_submodule(str(target))
        if not isinstance(module, nn.Softmax | nn.LogSoftmax):
            return None
        dim, target = module.dim, "softmax" if isinstance(module, nn.Softmax) else "log_softmax"
    axis = dim if isinstance(dim, int) else -1
    if target in _SOFTMAX:
        return "probabilities", axis
    return ("log-probabilities", axis) if target in _LOG_SOFTMAX else None


def _added(counts: Tensor, values: Tensor, size: int) -> Tensor:
    counts = functional.pad(counts, (0, size - len(counts)))
    return counts + values.bincount(minlength=size)
