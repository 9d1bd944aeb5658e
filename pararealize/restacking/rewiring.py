"""Capture, groups of residual blocks, Tableau -> the graph in which each group is one Runge-Kutta step.

Every operation stays where it is in the order, so that random numbers are drawn and shared statistics are counted as in
the original. A sum x_i + f_i(x_i) gives way to what can be added up once k_i is there: z_{i+1}, the sum over b, or y.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import fx

from pararealize.analysis.addition import Addition
from pararealize.analysis.residual import Residual
from pararealize.tracing.captured import Capture
from pararealize.tracing.graph_copy import GraphCopy

from .tableaux import Coefficient, Tableau

__all__ = ["STEP_SIZES", "Adaptive", "RestackedGraph"]

Adaptive = Literal["all", "output"]
STEP_SIZES = "steps"  # the top-level name under which learnable step sizes stand


@dataclasses.dataclass(slots=True)
class _RungeKuttaStep:
    """The nodes of step g in the new graph, as far as it is written.

    Attributes:
        g: the step's number, from 1.
        blocks: the residual blocks whose f's are its stages.
        x: the value that it begins from, from the first stage on.
        h: its size, where that is learnable.
        k: what the f's gave, up to the stage that is written.
        total: ``x + h·Σ_i b_i k_i`` so far, or the sum alone where h is learnable.
    """

    g: int
    blocks: tuple[Residual, ...]
    x: fx.Node | None = None
    h: fx.Node | None = None
    k: list[fx.Node] = dataclasses.field(default_factory=list)
    total: fx.Node | None = None


class RestackedGraph(GraphCopy):
    """The captured graph anew, each group of as many blocks as the table has stages as one step of size h.

    i and j are stages, from 1.

    Args:
        captured: the network.
        groups: blocks in a row, of which none lies within another.
        table: the coefficients.
        h: the step, where it is fixed.
        adaptive: what the learnable steps ``steps.h1``, ``steps.h2``, … scale; ``None`` for a fixed h.
    """

    def __init__(
        self,
        captured: Capture,
        groups: Sequence[tuple[Residual, ...]],
        table: Tableau,
        h: float,
        adaptive: Adaptive | None,
    ) -> None:
        super().__init__()
        self.table, self.h, self.adaptive = table, h, adaptive
        sums, omitted = {}, set()
        for g, blocks in enumerate(groups, start=1):
            step = _RungeKuttaStep(g, blocks)
            for i, block in enumerate(blocks, start=1):
                for addition, following in zip(block.additions, (*block.additions[1:], None), strict=True):
                    sums[addition.sum] = partial(self._write_sum, step, i, addition, following)
                    omitted |= {*addition.shortcut, *addition.tail}
        self.write(captured, sums, omitted)

    def _write_sum(self, step: _RungeKuttaStep, i: int, addition: Addition, following: Addition | None) -> None:
        """In the place of a sum of stage i: what the next addition within f reads, or after the last one, z_{i+1} or y.

        A block of two additions has f(z) = f_1(z) + f_2(z + f_1(z)).
        """
        k = self.copies[addition.branch]
        if len(step.k) < i:
            step.k.append(k)
        else:
            step.k[-1] = self.graph.call_function(operator.add, (step.k[-1], k))
        if following is not None:
            self.copies[following.x] = self.graph.call_function(operator.add, (self.copies[addition.x], k))
            return
        step.k[-1]._rename(f"k{step.g}_{i}")
        if step.x is None:
            step.x = self.copies[step.blocks[0].x]
            step.h = self.graph.get_attr(f"{STEP_SIZES}.h{step.g}") if self.adaptive else None
        self._write_stage(step, step.x, i)

    def _write_stage(self, step: _RungeKuttaStep, x: fx.Node, i: int) -> None:
        """What follows from k_i: a term of the sum over b, and the input of the next stage, or the end of the step."""
        if b := self.table.b[i - 1]:
            step.total = self._add_term(x, step.total, b, step.k[-1], step.h)
        if i < self.table.stages:
            self.copies[step.blocks[i].x] = self._stage_input(step, x, i + 1)
            return
        assert step.total is not None
        y = self._finish(x, step.total, step.h, f"y{step.g}")
        post = step.blocks[-1].post
        self.copies[step.blocks[-1].output] = y if post is None else self.graph.node_copy(post, lambda _: y)

    def _stage_input(self, step: _RungeKuttaStep, x: fx.Node, i: int) -> fx.Node:
        """``z_i = x + h·Σ_{j<i} a_ij k_j``."""
        h = step.h if self.adaptive == "all" else None
        z: fx.Node | None = None
        for a, k in zip(self.table.a[i - 1], step.k, strict=True):
            if a:
                z = self._add_term(x, z, a, k, h)
        return x if z is None else self._finish(x, z, h, f"z{step.g}_{i}")

    def _add_term(
        self, x: fx.Node, total: fx.Node | None, weight: Coefficient, k: fx.Node, h: fx.Node | None
    ) -> fx.Node:
        """One term more: of x + h·Σ for a fixed h, of Σ alone for a learnable one."""
        if h is None:
            return self._add_scaled(x if total is None else total, self.h * float(weight), k)
        if total is not None:
            return self._add_scaled(total, float(weight), k)
        return k if weight == 1 else self.graph.call_function(operator.mul, (k, float(weight)))

    def _add_scaled(self, a: fx.Node, weight: float, k: fx.Node) -> fx.Node:
        if weight == 1:
            return self.graph.call_function(operator.add, (a, k))
        return self.graph.call_function(torch.add, (a, k), {"alpha": weight})

    def _finish(self, x: fx.Node, total: fx.Node, h: fx.Node | None, name: str) -> fx.Node:
        """A whole sum as x + h·Σ under its name."""
        if h is None:
            total._rename(name)
            return total
        scaled = self.graph.call_function(operator.mul, (h, total))
        return self.graph.create_node("call_function", operator.add, (x, scaled), name=name)
