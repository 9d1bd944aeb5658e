"""LayerParallel, inputs -> LayerTimes: seconds of the stem, of every layer forward and backward, and of the head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from pararealize.errors import PlanError
from pararealize.restore import left_as_found
from pararealize.tracing.example import as_call

if TYPE_CHECKING:
    from .module import LayerParallel

__all__ = ["LayerTimes", "measure_layers"]

Triple: TypeAlias = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Seconds of every part of a network in layers, each by itself.

    Attributes:
        layers: forward, backward, and backward to the layer's input alone, of every layer.
        stem: forward, backward.
        head: likewise.
    """

    layers: tuple[Triple, ...]
    stem: tuple[float, float] = (0.0, 0.0)
    head: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def equal(cls, count: int, *, forward: float, backward: float, input_only: float) -> LayerTimes:
        """So many layers that all take the same time, and nothing around them."""
        return cls(layers=((forward, backward, input_only),) * count)

    @property
    def serial(self) -> tuple[float, float]:
        """The network as it is, forward and backward."""
        forward, backward, _ = zip(*self.layers, strict=True)
        return self.stem[0] + sum(forward) + self.head[0], self.stem[1] + sum(backward) + self.head[1]


def measure_layers(net: LayerParallel, inputs: Any, *, repeats: int = 3) -> LayerTimes:
    """Processor seconds of every part, the least of some runs.

    Args:
        net: it is left as found.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        repeats: how often each part is run.

    Raises:
        PlanError: the network is not on the CPU, whose clock this is.
    """
    kind = next(net.parameters()).device.type
    if kind != "cpu":
        raise PlanError(f"the network is on {kind}, and layers are timed on the CPU; pass LayerTimes of your own")
    args, kwargs = as_call(inputs)
    with left_as_found(net), torch.enable_grad():
        stem, (u, *context) = _timed(lambda: net._stem(*args, **kwargs), repeats)
        rows: list[Triple] = []
        for row in net.rows:
            leaf = u.detach().requires_grad_()
            reads = [context[i].detach() if isinstance(context[i], Tensor) else context[i] for i in row.layer.reads]
            forward, k = _timed(partial(row.f, leaf, *reads), repeats)
            own = row.parameters()
            whole, _ = _timed(partial(_pull, k, [leaf, *own]), repeats)
            alone, _ = _timed(partial(_pull, k, [leaf]), repeats)
            rows.append((forward, whole, alone))
            u = k if row.layer.fixed else u + k
            u = torch.relu(u) if row.layer.post else u
        leaf = u.detach().requires_grad_()
        head, output = _timed(lambda: net._head(leaf, *(context[i] for i in net.structure.head_reads)), repeats)
        given = [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
        own = [p for p in net._head.parameters() if p.requires_grad]
        back, _ = _timed(lambda: [_pull(x, [leaf, *own]) for x in given], repeats)
    return LayerTimes(layers=tuple(rows), stem=(stem, stem), head=(head, back))


def _pull(value: Tensor, inputs: list[Tensor]) -> Any:
    if value.requires_grad:
        torch.autograd.grad(value, inputs, torch.ones_like(value), retain_graph=True, allow_unused=True)


def _timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    found = []
    for _ in range(repeats + 1):
        began = process_time()
        result = work()
        found.append(process_time() - began)
    return min(found[1:]), result
