"""A network, a batch, a loss or gradients that are not finite -> the part of the network in which that began.

Forward, the batch is run once more, and hooks look at what goes into every part and what comes out of it. The first
part that makes something infinite out of something finite is at fault, in the order

    stem C^1, context, adapters C^2 …, segments g^1 …, coarse blocks F^1 …, layers, head h

Backward, gradients pass the parts from the head to the stem; the first one whose parameters have gradients that are not
finite is at fault. A network without such parts is looked at module by module.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pararealize.distributed.stage import Stage
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.network.local.module import LocalModule
from pararealize.network.module import PararealModule
from pararealize.network.parts import part_modules
from pararealize.tracing.containers import leaves_of
from pararealize.tracing.network_piece import contents_of

__all__ = ["Fault", "backward_fault", "forward_fault"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Where something became infinite or not a number.

    Attributes:
        where: the part, such as ``"segment 2"``, or ``"the batch"`` or ``"the loss"``.
        module: the first module or parameter in it, by its qualified name; empty where none is to blame alone.
        weights: whether weights of that part were not finite already.
    """

    where: str
    module: str = ""
    weights: bool = False

    def __str__(self) -> str:
        at = f", at {self.module}" if self.module else ""
        return f"{self.where}{at}" + (", whose weights are not finite" if self.weights else "")


@dataclass(slots=True, kw_only=True)
class _WatchedPart:
    """A part of the network on this rank, and what was seen of it in a forward pass.

    Attributes:
        label: what people call it.
        module: what computes it.
        order: its place in a forward pass; of a module without a part, that of its first call.
        input_is_finite: whether all inputs of all its calls were finite.
        output_is_finite: whether all outputs were.
        culprit: the first module in it that gave something non-finite, by its qualified name.
    """

    label: str
    module: nn.Module
    order: tuple[int, int, int, int] = (0, 0, 0, 0)
    input_is_finite: bool = True
    output_is_finite: bool = True
    culprit: str = ""


def forward_fault(net: nn.Module, x: Any, processes: TrainingProcesses) -> Fault:
    """Run a batch once more, in the network's mode and without a graph, and say where it becomes non-finite.

    All ranks call it. Buffers are put back; random numbers are drawn anew, so that dropout may differ.

    Args:
        net: the network, or this rank's part.
        x: the batch.
        processes: who trains it.
    """
    has_parts = _has_parts(net)
    leaves = [(path, module) for path, module in net.named_modules() if path and not any(module.children())]
    modules = leaves or [(type(net).__name__, net)]  # of any other network
    parts = _parts(net) if has_parts else [_WatchedPart(label=path, module=module) for path, module in modules]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    running: list[_WatchedPart] = []  # the parts that are being called, the innermost last
    calls = itertools.count(1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for part in parts:
            for hook in _watch(part, running, None if has_parts else calls):
                stack.callback(hook.remove)
        for path, leaf in leaves if has_parts else ():
            stack.callback(_name_culprit(leaf, path, running).remove)
        output = (net.net if isinstance(net, LocalModule) else net)(x)
        for buffer, value in buffers:
            buffer.copy_(value)
    faults = [
        (
            part.order,
            part.label,
            part.input_is_finite,
            part.culprit,
            _finite(list(contents_of(part.module).parameters())),
        )
        for part in parts
        if not part.output_is_finite
    ]
    reports = processes.gather((faults, _finite(x), _finite(output)))
    if not all(batch_is_finite for _, batch_is_finite, _ in reports):
        return Fault(where="the batch")
    rows = sorted((row for faults, _, _ in reports for row in faults), key=lambda row: row[0])
    if not rows:
        whole = all(output_is_finite for _, _, output_is_finite in reports)
        return Fault(where="the loss" if whole else "the network")
    starts = [row for row in rows if row[2]] or rows
    _, label, _, culprit, weights_are_finite = starts[0]
    return Fault(where=label, module=culprit, weights=not weights_are_finite)


def backward_fault(net: nn.Module, processes: TrainingProcesses) -> Fault:
    """Say where gradients became non-finite on their way from the loss to the input. All ranks call it.

    Args:
        net: the network, or this rank's part, with the gradients of one backward pass.
        processes: who trains it.
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    faults = []
    for part in _parts(net) if _has_parts(net) else [_WatchedPart(label="", module=net)]:
        parameters = [p for p in contents_of(part.module).parameters() if p.grad is not None and not _finite(p.grad)]
        if parameters:
            faults.append((part.order, part.label, names.get(id(parameters[-1]), "")))
    rows = [row for faults in processes.gather(faults) for row in faults]
    if not rows:
        return Fault(where="the loss")
    _, label, parameter = max(rows, key=lambda row: row[0])  # backward, the last part comes first
    return Fault(where=label, module=parameter) if label else Fault(where=parameter)


# Parts ---------------------------------------------------------------------------------------------------------------


def _has_parts(net: nn.Module) -> bool:
    return isinstance(net, Stage | PararealModule | LocalModule)


def _parts(net: nn.Module) -> list[_WatchedPart]:
    """The parts of a parareal network, or of a layer-parallel one, that this rank has."""
    if isinstance(net, Stage):
        modules = net.part_modules()
    else:
        network = net.net if isinstance(net, LocalModule) else net
        assert isinstance(network, PararealModule)
        modules = part_modules(network, network.network_parts.values())
    plan = getattr(net, "plan", None)
    return [_WatchedPart(label=part.label(plan), module=module, order=part.order) for part, module in modules.items()]


# Hooks ---------------------------------------------------------------------------------------------------------------


def _watch(part: _WatchedPart, running: list[_WatchedPart], calls: Iterator[int] | None) -> list[RemovableHandle]:
    """See what goes in and what comes out, of all calls; number the first call where numbers are passed."""

    def before(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        running.append(part)
        part.input_is_finite = part.input_is_finite and _finite((arguments, keywords))
        if calls is not None and part.order == (0, 0, 0, 0):
            part.order = 0, 0, 0, next(calls)

    def after(_: nn.Module, __: Any, output: Any) -> None:
        running.pop()
        part.output_is_finite = part.output_is_finite and _finite(output)

    return [part.module.register_forward_pre_hook(before, with_kwargs=True), part.module.register_forward_hook(after)]


def _name_culprit(leaf: nn.Module, path: str, running: list[_WatchedPart]) -> RemovableHandle:
    """Note the first module in each part that gives something non-finite."""

    def after(_: nn.Module, __: Any, output: Any) -> None:
        if running and not running[-1].culprit and not _finite(output):
            running[-1].culprit = path

    return leaf.register_forward_hook(after)


def _finite(value: Any) -> bool:
    return all(
        bool(torch.isfinite(leaf).all())
        for leaf in leaves_of(value)
        if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    )
