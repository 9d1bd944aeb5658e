"""Capture, groups of residual blocks, Tableau -> the graph in which each group is one Runge-Kutta step.

Every operation stays where it is in the order, so that random numbers are drawn and shared statistics are counted as in
the original. A sum x_i + f_i(x_i) gives way to what can be added up once k_i is there: z_{i+1}, the sum over b, or y.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import fx

from pararealize.analysis.addition import Addition
from pararealize.analysis.residual import Residual
from pararealize.tracing.captured import Capture
from pararealize.tracing.graph_copy import GraphCopy

from .tableaux import Coefficient, Tableau

__all__ = ["STEPS", "Adaptive", "rewire"]

Adaptive = Literal["all", "output"]
STEPS = "steps"  # the top-level name under which learnable steps stand


def rewire(
    captured: Capture, groups: Sequence[tuple[Residual, ...]], table: Tableau, h: float, adaptive: Adaptive | None
) -> fx.Graph:
    """The captured graph anew, each group of as many blocks as the table has stages as one step of size h.

    Args:
        captured: the network.
        groups: blocks in a row, of which none lies within another.
        table: the coefficients.
        h: the step, where it is fixed.
        adaptive: what the learnable steps ``steps.h1``, ``steps.h2``, … scale; ``None`` for a fixed h.
    """
    return _Writer(captured, groups, table, h, adaptive).graph


@dataclasses.dataclass(slots=True)
class _Step:
    """What is known of step g so far: x, its h where that is learnable, the k's, and the sum over b."""

    g: int
    group: tuple[Residual, ...]
    x: fx.Node | None = None
    h: fx.Node | None = None
    k: dict[int, fx.Node] = dataclasses.field(default_factory=dict)
    summed: fx.Node | None = None

    def parts(self) -> Iterator[tuple[int, int, Addition]]:
        """(stage from 1, number of the sum from 0, sum) of every sum."""
        for i, residual in enumerate(self.group, start=1):
            for p, part in enumerate(residual.additions):
                yield i, p, part


class _Writer(GraphCopy):
    """Writes the graph; g is the group, i and j are stages, all from 1."""

    def __init__(
        self,
        captured: Capture,
        groups: Sequence[tuple[Residual, ...]],
        table: Tableau,
        h: float,
        adaptive: Adaptive | None,
    ) -> None:
        self.table, self.h, self.adaptive = table, h, adaptive
        super().__init__()
        steps = [_Step(g, group) for g, group in enumerate(groups, start=1)]
        sums = {part.sum: partial(self._sum, step, i, p) for step in steps for i, p, part in step.parts()}
        dropped = {node for step in steps for _, _, part in step.parts() for node in (*part.shortcut, *part.tail)}
        self.write(captured, sums, dropped)

    def _sum(self, step: _Step, i: int, p: int) -> None:
        """What stands in the place of the p-th sum of stage i: in the end z_{i+1}, or y."""
        residual = step.group[i - 1]
        part = residual.additions[p]
        k = self.copies[part.branch]
        step.k[i] = self._call(operator.add, step.k[i], k) if p else k
        if part is not residual.additions[-1]:
            self.copies[residual.additions[p + 1].x] = self._call(operator.add, self.copies[part.x], k)
            return
        step.k[i]._rename(f"k{step.g}_{i}")
        x = self.copies[step.group[0].x] if i == 1 else step.x
        if i == 1:
            step.x = x
            step.h = self.graph.get_attr(f"{STEPS}.h{step.g}") if self.adaptive else None
        assert x is not None
        if b := self.table.b[i - 1]:
            step.summed = self._add(x, step.summed, b, step.k[i], step.h)
        if i < self.table.stages:
            self.copies[step.group[i].x] = self._stage(step, x, i + 1)
            return
        assert step.summed is not None
        y = self._finish(x, step.summed, step.h, f"y{step.g}")
        post = step.group[-1].post
        self.copies[step.group[-1].output] = y if post is None else self.graph.node_copy(post, lambda _: y)

    def _stage(self, step: _Step, x: fx.Node, i: int) -> fx.Node:
        """The input of stage i, from the k's before it."""
        h = step.h if self.adaptive == "all" else None
        z: fx.Node | None = None
        for j, a in enumerate(self.table.a[i - 1], start=1):
            if a:
                z = self._add(x, z, a, step.k[j], h)
        return x if z is None else self._finish(x, z, h, f"z{step.g}_{i}")

    def _add(self, x: fx.Node, summed: fx.Node | None, weight: Coefficient, k: fx.Node, h: fx.Node | None) -> fx.Node:
        """One term more: of x + h·Σ for a fixed h, of Σ alone for a learnable one."""
        if h is not None:
            if summed is None:
                return k if weight == 1 else self._call(operator.mul, k, float(weight))
            return self._plus(summed, float(weight), k)
        return self._plus(x if summed is None else summed, self.h * float(weight), k)

    def _plus(self, a: fx.Node, weight: float, k: fx.Node) -> fx.Node:
        if weight == 1:
            return self._call(operator.add, a, k)
        return self.graph.call_function(torch.add, (a, k), {"alpha": weight})

    def _finish(self, x: fx.Node, summed: fx.Node, h: fx.Node | None, name: str) -> fx.Node:
        """The sum as x + h·Σ under its name."""
        if h is None:
            summed._rename(name)
            return summed
        scaled = self._call(operator.mul, h, summed)
        return self.graph.create_node("call_function", operator.add, (x, scaled), name=name)

    def _call(self, function: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)
