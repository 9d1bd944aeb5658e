"""The original, its conversion with n = 1 (or n) -> nothing where they agree, ``WrongError`` where they do not.

With n = 1 a conversion is the original; with n, after n - 1 iterations. Where the original itself raises there is
nothing to compare: ``NotApplicableError``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from pararealize import PararealModule

from .cases import Case
from .tensors import call, each, every, floating, one_row, seeded

__all__ = [
    "NotApplicableError",
    "WrongError",
    "batch_1",
    "bfloat16",
    "causality",
    "gradients",
    "iterations",
    "modes",
    "other_sizes",
    "second_call",
]

_CLOSE = 1e-4  # of the largest output: two runs of the same sums may round differently
_CLOSE_GRADIENT = 1e-3  # of the largest of a tensor
_NOISE = 1e-5  # of the largest gradient of all: what is a sum to zero is left with rounding
_CLOSE_BFLOAT16 = 3e-2
_CLOSE_ITERATED = 1e-3


class WrongError(Exception):
    """What was converted is not what was asked for."""


class NotApplicableError(Exception):
    """The original does not do what was to be compared."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What a call gave: outputs, whether they have gradients, gradients by name, buffers by name."""

    outputs: list[torch.Tensor]
    graded: list[bool]
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


def _run(
    model: nn.Module, inputs: Any, *, training: bool, backward: bool = False, parameters_alone: bool = False
) -> _Run:
    """A call from the same seed; with ``backward``, and a backward pass from one random cotangent."""
    model.train(training)
    seeded()
    inputs = each(lambda tensor: tensor.detach().clone(), inputs)
    graded = [t for t in every(inputs) if backward and not parameters_alone and t.is_floating_point()]
    leaves = [tensor.requires_grad_() for tensor in graded]
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(backward):
        outputs = list(floating(call(model, inputs)))
    gradients: dict[str, torch.Tensor] = {}
    with_gradients = [output.requires_grad for output in outputs]
    if backward and any(with_gradients):
        generator = torch.Generator().manual_seed(2)
        ways = [(y, torch.randn(y.shape, generator=generator).to(y)) for y in outputs if y.requires_grad]
        torch.autograd.backward([y for y, _ in ways], [way for _, way in ways])
        named = [*model.named_parameters(), *((f"input {i}", leaf) for i, leaf in enumerate(leaves))]
        gradients = {name: tensor.grad.detach().clone() for name, tensor in named if tensor.grad is not None}
        model.zero_grad(set_to_none=True)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    copies = [output.detach().clone() for output in outputs]
    return _Run(outputs=copies, graded=with_gradients, gradients=gradients, buffers=buffers)


def _original(model: nn.Module, inputs: Any, **options: Any) -> _Run:
    try:
        return _run(model, inputs, **options)
    except Exception as error:
        raise NotApplicableError from error


# What differs ---------------------------------------------------------------------------------------------------------


def _outputs(a: _Run, b: _Run, where: str, close: float = _CLOSE) -> float:
    """The largest difference of outputs, as a share of the largest output; the error where it is too large."""
    ours, theirs = ([(tuple(y.shape), y.dtype) for y in run.outputs] for run in (a, b))
    if ours != theirs:
        raise WrongError(f"{where}: outputs are {theirs} and not {ours}"[:300])
    difference = max(map(_relative, a.outputs, b.outputs), default=0.0)
    if not difference <= close:
        raise WrongError(f"{where}: outputs differ by {difference:.2g} of the largest")
    for name in a.buffers.keys() & b.buffers.keys():
        before, after = a.buffers[name], b.buffers[name]
        if before.shape != after.shape or not _relative(before, after) <= close:
            raise WrongError(f"{where}: the buffer {name} differs")
    return difference


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.to_dense() if a.layout != torch.strided else a, b.to_dense() if b.layout != torch.strided else b
    if a.is_complex() or torch.equal(a.isnan(), b.isnan()):
        if torch.equal(a.nan_to_num(), b.nan_to_num()):
            return 0.0
        a, b = (torch.view_as_real(x) if x.is_complex() else x.nan_to_num() for x in (a, b))
        return float((a.double() - b.double()).abs().max() / a.double().abs().max())
    return float("inf")


def _gradients(a: _Run, b: _Run, where: str) -> None:
    if a.graded != b.graded:
        raise WrongError(f"{where}: outputs that require gradients: {b.graded} and not {a.graded}")
    for fault, names in {
        "lost": a.gradients.keys() - b.gradients.keys(),
        "new": b.gradients.keys() - a.gradients.keys(),
    }.items():
        if names:
            raise WrongError(f"{where}: {len(names)} gradients are {fault}: {', '.join(sorted(names)[:3])}")
    largest = max((float(g.abs().max()) for g in a.gradients.values() if g.numel()), default=0.0)
    for name, gradient in a.gradients.items():
        other = b.gradients[name]
        if torch.equal(gradient, other) or not gradient.numel():
            continue
        difference = float((gradient.nan_to_num() - other.nan_to_num()).abs().max())
        nans = not torch.equal(gradient.isnan(), other.isnan())
        if nans or difference > _CLOSE_GRADIENT * float(gradient.nan_to_num().abs().max()) + _NOISE * largest:
            raise WrongError(f"{where}: the gradient of {name} differs by {difference:.2g}")


# The columns ----------------------------------------------------------------------------------------------------------


def modes(case: Case, net: PararealModule) -> dict[str, Any]:
    """Outputs and buffers in eval, train and again in eval mode, from the same seed."""
    differences = []
    for training in (False, True, False):
        expected = _original(case.model, case.inputs, training=training)
        got = _run(net, case.inputs, training=training)
        differences.append(_outputs(expected, got, f"in {_mode(training)} mode"))
    return {"exact": max(differences) == 0.0}


def _mode(training: bool) -> str:
    return "train" if training else "eval"


def gradients(case: Case, net: PararealModule) -> None:
    """Gradients of parameters and inputs, in both modes."""
    compared = False
    for training in (True, False):
        options = {"training": training, "backward": True}
        try:
            expected = _original(case.model, case.inputs, **options)
        except NotApplicableError:  # such as a change of the input in place
            options["parameters_alone"] = True
            expected = _original(case.model, case.inputs, **options)
        got = _run(net, case.inputs, **options)
        where = f"in {_mode(training)} mode"
        _outputs(expected, got, where)
        _gradients(expected, got, where)
        compared = compared or bool(expected.gradients)
    if not compared:
        raise NotApplicableError


def second_call(case: Case, net: PararealModule) -> None:
    """Three calls one after the other, with other values: nothing of one call stays in the next."""
    other = each(lambda t: 0.9 * t.flip(0) if t.is_floating_point() and t.ndim else t, case.inputs)
    for i, inputs in enumerate((case.inputs, other, case.inputs)):
        expected = _original(case.model, inputs, training=True)
        _outputs(expected, _run(net, inputs, training=True), f"call {i + 1} in train mode")


def batch_1(case: Case, net: PararealModule) -> None:
    """One row."""
    inputs = one_row(case.inputs)
    expected = _original(case.model, inputs, training=False)
    _outputs(expected, _run(net, inputs, training=False), "at batch 1")


def other_sizes(case: Case, net: PararealModule) -> dict[str, Any]:
    """Other images, lengths or extents, with gradients: those that the original itself takes."""
    compared = []
    for label, inputs in case.others.items():
        try:
            expected = _original(case.model, inputs, training=False, backward=True)
        except NotApplicableError:
            continue
        got = _run(net, inputs, training=False, backward=True)
        _outputs(expected, got, f"at {label}")
        _gradients(expected, got, f"at {label}")
        compared.append(label)
    if not compared:
        raise NotApplicableError
    return {"sizes": compared}


def iterations(case: Case, net: PararealModule) -> None:
    """With n segments, n - 1 iterations give the original."""
    expected = _original(case.model, case.inputs, training=False)
    if not all(y.isfinite().all() for y in expected.outputs):
        raise NotApplicableError
    net.eval()
    seeded()
    with torch.no_grad():
        outputs = [y.detach() for y in floating(net.iterate(case.inputs, net.plan.n - 1))]
    got = dataclasses.replace(expected, outputs=outputs, buffers={})
    _outputs(expected, got, f"after {net.plan.n - 1} iterations", _CLOSE_ITERATED)


def bfloat16(case: Case, one: PararealModule, net: PararealModule) -> None:
    """``.to(bfloat16)`` after conversion: n = 1 is the original's, n segments give as many numbers.

    Of one row, where the original takes that: many processors convolve a hundred times slower in bfloat16.
    """
    inputs = each(lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t, case.inputs)
    model = case.model.to(torch.bfloat16)
    try:
        row = one_row(inputs)
        expected, inputs = _original(model, row, training=False), row
    except NotApplicableError:
        expected = _original(model, inputs, training=False)
    got = _run(one.to(torch.bfloat16), inputs, training=False)
    _outputs(expected, got, "in bfloat16", _CLOSE_BFLOAT16)
    several = _run(net.to(torch.bfloat16), inputs, training=False)
    ours, theirs = ([(tuple(y.shape), y.dtype) for y in run.outputs] for run in (expected, several))
    if ours != theirs:
        raise WrongError(f"n = {net.plan.n} in bfloat16: outputs are {theirs} and not {ours}"[:300])


# Causality ------------------------------------------------------------------------------------------------------------


def causality(case: Case, net: PararealModule) -> None:
    """What comes later changes nothing earlier, where that is so in the original: with n segments, and all trained."""
    with torch.no_grad():
        for parameter in net.coarse.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    outputs = _original(case.model, case.inputs, training=False).outputs
    compared = False
    for axis in _axes(case.inputs, outputs):
        start, inputs = _other_future(case.inputs, axis)
        changed = _original(case.model, inputs, training=False).outputs
        causal = list(_unchanged(outputs, changed, start, every(case.inputs)[0].shape[axis]))
        if not causal:
            continue
        compared = True
        before, after = (_run(net, x, training=False).outputs for x in (case.inputs, inputs))
        for i, output_axis, until in causal:
            leak = (before[i] - after[i]).narrow(output_axis, 0, until).abs().max()
            if leak > 1e-6 * before[i].abs().max():
                raise WrongError(
                    f"axis {axis} of the input from {start} on changes output {i} before {until} by {float(leak):.2g}"
                )
    if not compared:
        raise NotApplicableError


def _axes(inputs: Any, outputs: Iterable[torch.Tensor]) -> range:
    """Axes of the first input that an output may have too."""
    first = every(inputs)[0]
    most = max((y.ndim for y in outputs), default=0)
    if first.is_floating_point() and most < 3:
        return range(0)  # a vector of classes for a picture
    return range(1, min(first.ndim, 5))


def _other_future(inputs: Any, axis: int) -> tuple[int, Any]:
    """Other values in the second half of the first input along an axis."""
    first = every(inputs)[0]
    start = first.shape[axis] // 2
    other = torch.randn(first.shape, generator=torch.Generator().manual_seed(6)) if first.is_floating_point() else None
    late = (first.flip(1).roll(1, 0) if other is None else other.to(first)).narrow(
        axis, start, first.shape[axis] - start
    )
    changed = torch.cat([first.narrow(axis, 0, start), late], dim=axis)
    return start, each(lambda tensor: changed if tensor is first else tensor, inputs)


def _unchanged(
    outputs: list[torch.Tensor], changed: list[torch.Tensor], start: int, size: int
) -> Iterator[tuple[int, int, int]]:
    """(output, axis, until): nothing before ``until`` changed, which stands for ``start`` of ``size`` in the input."""
    for i, (a, b) in enumerate(zip(outputs, changed, strict=True)):
        if a.shape != b.shape:
            continue
        for axis in range(1, a.ndim):
            until = start * a.shape[axis] // size
            parts = [(a - b).narrow(axis, 0, until), (a - b).narrow(axis, until, a.shape[axis] - until)]
            if until and a.shape[axis] > 1 and not parts[0].any() and parts[1].any():
                yield i, axis, until
