"""LayerParallel, inputs -> LayerTimes: seconds of the stem, of every layer forward and backward, and of the head."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from time import process_time
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pararealize.errors import PlanError
from pararealize.restore import left_as_found
from pararealize.tracing.module_view import Piece

from .module import LayerParallel

__all__ = ["LayerTimes", "measure_layers"]

Triple: TypeAlias = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Seconds of every part of a network in layers, each by itself.

    Attributes:
        layers: forward, backward, and backward to the layer's input alone, of every layer.
        stem: forward and backward of the stem.
        head: forward and backward of the head.
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
    """Processor seconds of every part: the least of some runs.

    Args:
        net: it is left as found.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        repeats: number of runs of each part that count.

    Raises:
        PlanError: the network is not on the CPU, whose clock this is.
    """
    kind = next(net.parameters()).device.type
    if kind != "cpu":
        raise PlanError(f"the network is on {kind}, and layers are timed on the CPU; pass LayerTimes of your own")
    named = net.structure.call.tensors_of(inputs)
    net.call_conditions.check_tensors(named)
    tensors = named.values()
    stem, head = (Piece(net, copy.deepcopy(net.part_graphs[name]), name) for name in ("stem", "head"))
    with left_as_found(net), torch.enable_grad():
        stem_time, (u, *context) = _timed(lambda: stem(*tensors), repeats)
        times: list[Triple] = []
        for row in net.rows:
            leaf = u.detach().requires_grad_()
            reads = [context[i].detach() if isinstance(context[i], Tensor) else context[i] for i in row.layer.reads]
            forward, k = _timed(partial(row.f, leaf, *reads), repeats)
            backward, _ = _timed(partial(_pull, [k], [leaf, *row.parameters()]), repeats)
            input_only, _ = _timed(partial(_pull, [k], [leaf]), repeats)
            times.append((forward, backward, input_only))
            u = row.advance(u, k)
        leaf = u.detach().requires_grad_()
        head_time, output = _timed(lambda: head(leaf, *(context[i] for i in net.structure.head_reads)), repeats)
        results = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
        parameters = [p for p in head.parameters() if p.requires_grad]
        head_back, _ = _timed(partial(_pull, results, [leaf, *parameters]), repeats)
    return LayerTimes(layers=tuple(times), stem=(stem_time, stem_time), head=(head_time, head_back))


def _pull(values: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """A backward through a part's graph from each of its results; the graph stays for the next."""
    for value in values:
        if value.requires_grad:
            torch.autograd.grad(value, inputs, torch.ones_like(value), retain_graph=True, allow_unused=True)


def _timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The least seconds of some runs, and the last one's result; a first run, which warms caches, does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = process_time()
        result = work()
        seconds.append(process_time() - start)
    return min(seconds[1:]), result
