"""A network, a batch, a loss or gradients that are not finite -> the part of the network in which that began.

Forward, the batch is run once more, and hooks look at what goes into every part and what comes out of it. The first
part that makes something infinite out of something finite is at fault, in the order

    stem C^1, context, adapters C^2 …, segments g^1 …, coarse blocks F^1 …, head h

Backward, gradients pass the parts from the head to the stem; the first one whose parameters have gradients that are not
finite is at fault. A network without such parts is looked at module by module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pararealize.distributed.stage import Stage
from pararealize.distributed.world import Team
from pararealize.network.local.module import LocalModule
from pararealize.network.module import PararealModule

__all__ = ["Fault", "backward_fault", "forward_fault"]

_KINDS = {"stem": 0, "context": 1, "C": 2, "g": 3, "F": 4, "head": 5}


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


@dataclass(slots=True)
class _Sight:
    """What a part was given, and what it gave."""

    given: bool = True
    gave: bool = True
    module: str = ""


def forward_fault(net: nn.Module, x: torch.Tensor, team: Team) -> Fault:
    """Run a batch once more, in the network's mode and without a graph, and say where it becomes non-finite.

    All ranks call it. Buffers are put back; random numbers are drawn anew, so that dropout may differ.

    Args:
        net: the network, or this rank's part.
        x: the batch.
        team: who trains it.
    """
    plain = not isinstance(net, Stage | PararealModule | LocalModule)
    parts = _parts(net)
    sights = {name: _Sight() for name in parts}
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        inside: list[str] = []
        calls: list[str] = []
        for name, module in parts.items():
            stack.enter_context(_watching(module, sights[name], inside, calls, name))
        for path, leaf in () if plain else _leaves(net):
            stack.enter_context(_naming(leaf, path, sights, inside))
        output = (net.net if isinstance(net, LocalModule) else net)(x)
        for buffer, value in buffers:
            buffer.copy_(value)
    order = {name: (0, i) for i, name in enumerate(dict.fromkeys(calls))} if plain else {n: _key(n) for n in parts}
    own = {
        name: (order[name], sight.given, sight.gave, sight.module, _finite(list(parts[name].parameters())))
        for name, sight in sights.items()
        if name in order
    }
    told = team.gather((own, _finite(x), _finite(output)))
    rows = sorted(((name, *row) for found, _, _ in told for name, row in found.items()), key=lambda row: row[1])
    faulty = [row for row in rows if not row[3]]
    started = [row for row in faulty if row[2]] or faulty
    if not all(batch for _, batch, _ in told):
        return Fault(where="the batch")
    if not started:
        return Fault(where="the network" if not all(result for _, _, result in told) else "the loss")
    name, _, _, _, module, weights = started[0]
    return Fault(where=name if plain else _label(name, net), module="" if plain else module, weights=not weights)


def backward_fault(net: nn.Module, team: Team) -> Fault:
    """Say where gradients became non-finite on their way from the loss to the input. All ranks call it.

    Args:
        net: the network, or this rank's part, with the gradients of one backward pass.
        team: who trains it.
    """
    parts = _parts(net) if isinstance(net, Stage | PararealModule | LocalModule) else {"": net}
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    own = {}
    for part, module in parts.items():
        bad = [
            names.get(id(parameter), "")
            for parameter in module.parameters()
            if parameter.grad is not None and not _finite(parameter.grad)
        ]
        if bad:
            kind, j = _key(part) if part else (0, 0)
            own[part] = ((-kind, -j), bad[-1])
    rows = sorted(((name, *row) for found in team.gather(own) for name, row in found.items()), key=lambda row: row[1])
    if not rows:
        return Fault(where="the loss")
    name, _, parameter = rows[0]
    return Fault(where=_label(name, net), module=parameter) if name else Fault(where=parameter)


# Parts ---------------------------------------------------------------------------------------------------------------


def _parts(net: nn.Module) -> Mapping[str, nn.Module]:
    """The parts that a parareal network has on this rank, by their letters; of others, the innermost modules."""
    if isinstance(net, Stage):
        return dict(net._own.parts)
    if isinstance(net, LocalModule):
        net = net.net
    if not isinstance(net, PararealModule):
        return dict(_leaves(net)) or {type(net).__name__: net}
    found: dict[str, nn.Module] = {"stem": net.stem}
    if net.context is not None:
        found["context"] = net.context
    for parts in (net.adapters, net.segments, net.coarse):
        found |= dict(parts.items())
    found["head"] = net.head
    return found


def _leaves(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in net.named_modules():
        if path and next(module.children(), None) is None:
            yield path, module


def _key(name: str) -> tuple[int, int]:
    """Forward order."""
    return (_KINDS[name], 0) if name in _KINDS else (_KINDS[name[0]], int(name[1:]))


def _label(name: str, net: nn.Module) -> str:
    words = {"C": "adapter C^{j}", "g": "segment {j}", "F": "coarse block F^{j}"}
    if name[:1] in words and name[1:].isdigit():
        found = words[name[0]].format(j=name[1:])
        plan = getattr(net, "plan", None)
        if name[0] == "g" and plan is not None:
            segment = plan.segments[int(name[1:]) - 1]
            found += f" ({segment.first_block} to {segment.last_block})"
        return found
    return {"stem": "the stem C^1", "context": "the context", "head": "the head"}.get(name, name)


# Hooks ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _watching(module: nn.Module, sight: _Sight, inside: list[str], calls: list[str], name: str) -> Iterator[None]:
    """See what goes in and what comes out; of several calls, all of them."""

    def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inside.append(name)
        calls.append(name)
        sight.given = sight.given and _finite((given, named))

    def after(_: nn.Module, __: Any, gave: Any) -> None:
        inside.pop()
        sight.gave = sight.gave and _finite(gave)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _naming(leaf: nn.Module, path: str, sights: Mapping[str, _Sight], inside: list[str]) -> Iterator[None]:
    """Note the first module in each part that gives something non-finite."""

    def after(_: nn.Module, __: Any, gave: Any) -> None:
        if inside and not sights[inside[-1]].module and not _finite(gave):
            sights[inside[-1]].module = path

    handle = leaf.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _finite(value: Any) -> bool:
    return all(
        bool(torch.isfinite(leaf).all())
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    )
