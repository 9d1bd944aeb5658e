r"""Layers and the values of a step -> the maps Φ and their transposes that multigrid in depth is made of.

    f(n, u)             k, the increment of layer n at u; remembered while u stays the same tensor
    Φ_n^w(u)            u + w·k, or relu(u + w·k)          w = 1 on the finest level; a fixed layer is its own map
    record(n, u)        the same with an autograd graph, in the last sweep: buffers are committed here and only here
    (Φ_n^w)ᵀ(λ)         μ + w·(∂f/∂u)ᵀμ,  μ = λ, or λ where relu passes it on

The last sweep starts from every U_jc, so the graph of f at U_jc serves the coarse transposes as well: they recompute
nothing. The coarse step, the first step of F-relaxation and the last sweep's first layer all read f at one U_jc: it is
computed once, with a graph, and found again by the identity of U_jc.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pararealize.distributed.activation_checkpoint import still
from pararealize.random_state import seeded_state
from pararealize.tracing.module_view import Piece

from .hierarchy import Hierarchy
from .layers import Layer

__all__ = ["Adjoint", "Forward", "Record", "TimeStep", "norm", "uncached"]


class TimeStep:
    """A layer that can be run: its graph over the network's own modules.

    Attributes:
        layer: what it is.
        f: called with u and its context.
        has_buffers: whether calling it may change buffers.
    """

    def __init__(self, tree: nn.Module, layer: Layer) -> None:
        self.layer = layer
        self.f = Piece(tree, layer.graph, f"Layer{'' if layer.fixed else 'F'}")
        self._holders: list[tuple[nn.Module, str | None]] = []
        for node in layer.graph.nodes:
            if node.op == "call_module":
                self._holders += [(part, None) for part in self.f.get_submodule(str(node.target)).modules()]
            elif node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                self._holders.append((self.f.get_submodule(owner), name))
        self.has_buffers = any(module._buffers for module in self.f.modules())

    def advance(self, u: Tensor, k: Tensor, width: int = 1) -> Tensor:
        """The value behind a step of some width, from the one before it and what ``f`` gave for that."""
        if self.layer.fixed:
            return k
        moved = torch.add(u, k, alpha=width)
        return torch.relu_(moved) if self.layer.post else moved

    def parameters(self) -> list[Tensor]:
        """The parameters that it reads and that are trained; they may have been replaced since the last step."""
        found: dict[int, Tensor] = {}
        for holder, name in self._holders:
            tensors = holder._parameters.values() if name is None else (holder._parameters.get(name),)
            found.update((id(tensor), tensor) for tensor in tensors if tensor is not None and tensor.requires_grad)
        return list(found.values())


@dataclasses.dataclass(slots=True)
class Record:
    """f at u: the value as it was given, the leaf of the graph, and what f gave (for a fixed layer, the next value)."""

    u: Tensor
    leaf: Tensor
    k: Tensor


class Forward:
    """The fine and coarse maps of one step of training, or of one evaluation.

    Args:
        rows: the layers by their numbers; of those that stand elsewhere no map is asked for.
        hierarchy: their levels.
        context: the values of the contexts, leaves where they need gradients.
        seed: of this step's random numbers: layer n draws from ``seed + n`` in every sweep.
        recording: whether an adjoint will follow.
    """

    def __init__(
        self, rows: Mapping[int, TimeStep], hierarchy: Hierarchy, context: Sequence[Any], seed: int, *, recording: bool
    ) -> None:
        self.rows, self.hierarchy, self.context, self.seed, self.recording = rows, hierarchy, context, seed, recording
        self.records: dict[int, Record] = {}
        self._known: dict[int, Record] = {}
        self._kept = {level.steps[first].layer for level in hierarchy.levels[:1] for first, _ in level.intervals}
        self._plain = {n for n in self._kept if n in rows and not rows[n].has_buffers}

    def step(self, level: int, s: int, u: Tensor) -> Tensor:
        """``Φ_s^l(u)``: the map that :func:`pararealize.multigrid.solver.solver.solve` is given."""
        step = self.hierarchy.levels[level].steps[s]
        return self.rows[step.layer].advance(u, self._increment(step.layer, u).k.detach(), step.width)

    def sweep(self, j: int, u: Tensor) -> Tensor:
        """The last sweep of interval j from its C-point: every layer is recorded; independent of other intervals."""
        for s in range(*self.hierarchy.levels[0].intervals[j]):
            record = self.record(s, u)
            u = self.rows[s].advance(u, record.k.detach())
        return u

    def record(self, n: int, u: Tensor) -> Record:
        """Layer n at u as the last sweep leaves it: buffers move, once."""
        known = self._known.pop(n, None)
        if known is None or known.u is not u or n not in self._plain:
            known = self._evaluate(n, u, graph=self.recording)
        if self.recording:
            self.records[n] = known
        return known

    def _increment(self, n: int, u: Tensor) -> Record:
        known = self._known.get(n)
        if known is not None and known.u is u:
            return known
        with still(self.rows[n].f) if self.rows[n].has_buffers else _AS_IT_IS:
            found = self._evaluate(n, u, graph=self.recording and n in self._plain)
        if n in self._kept:
            self._known[n] = found
        return found

    def _evaluate(self, n: int, u: Tensor, *, graph: bool) -> Record:
        row = self.rows[n]
        leaf = u.detach().requires_grad_(graph)
        arguments = [self.context[i] for i in row.layer.reads]
        with torch.set_grad_enabled(graph), seeded_state(self.seed + n, [u.device]) if row.layer.random else _AS_IT_IS:
            k = row.f(leaf, *arguments)
        return Record(u=u, leaf=leaf, k=k)


class Adjoint:
    """The transposes of the fine and coarse maps, at the values that the last sweep recorded.

    Args:
        forward: whose records these are.
        inputs: parameters and contexts whose gradients are asked for.
        keep: whether the graphs are to stay, for another adjoint.
    """

    def __init__(self, forward: Forward, inputs: Sequence[Tensor], *, keep: bool = False) -> None:
        self.forward, self._keep = forward, keep
        self.hierarchy = forward.hierarchy.reversed()
        self.gradients: dict[int, Tensor] = {}
        self._asked = {id(tensor): tensor for tensor in inputs}
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def step(self, level: int, s: int, value: Tensor) -> Tensor:
        """``(Φ_s^l)ᵀ λ`` with time running backwards; input-only."""
        step = self.hierarchy.levels[level].steps[s]
        key = step.layer, step.width
        known = self._known.get(key)
        if known is None or known[0] is not value:
            known = self._known[key] = value, self._transpose(step.layer, step.width, value)
        return known[1]

    def sweep(self, j: int, value: Tensor) -> Tensor:
        """The last sweep of interval j (counted backwards) from λ at its right end: gradients of all else as well."""
        for s in range(*self.hierarchy.levels[0].intervals[j]):
            value = self._whole(self.hierarchy.levels[0].steps[s].layer, value, keep=self._keep)
        return value

    def _transpose(self, n: int, width: int, value: Tensor) -> Tensor:
        record = self.forward.records[n]
        passed = self._passed(record, n, width, value)
        pulled = _pull(record, [record.leaf], passed, keep=True)[0]
        return self._sum(n, width, passed, pulled)

    def _whole(self, n: int, value: Tensor, *, keep: bool) -> Tensor:
        record, row = self.forward.records[n], self.forward.rows[n]
        passed = self._passed(record, n, 1, value)
        contexts = pytree.tree_leaves([self.forward.context[i] for i in row.layer.reads])
        others = {id(tensor): tensor for tensor in (*row.parameters(), *contexts) if id(tensor) in self._asked}
        pulled, *found = _pull(record, [record.leaf, *others.values()], passed, keep=keep)
        for key, gradient in zip(others, found, strict=True):
            if gradient is not None:
                self.gradients[key] = self.gradients[key] + gradient if key in self.gradients else gradient
        return self._sum(n, 1, passed, pulled)

    def _passed(self, record: Record, n: int, width: int, value: Tensor) -> Tensor:
        """μ: what the ReLU behind the sum passes on of λ."""
        if not self.forward.rows[n].layer.post:
            return value
        return value * (record.u + width * record.k.detach() > 0)

    def _sum(self, n: int, width: int, passed: Tensor, pulled: Tensor | None) -> Tensor:
        if self.forward.rows[n].layer.fixed:
            return torch.zeros_like(self.forward.records[n].leaf) if pulled is None else pulled
        if pulled is None:
            return passed
        return torch.add(passed, pulled, alpha=width)


def _pull(record: Record, inputs: Sequence[Tensor], value: Tensor, *, keep: bool) -> Sequence[Tensor | None]:
    """The vector-Jacobian products of f with respect to some inputs; ``None`` where it does not depend on one."""
    if not record.k.requires_grad:
        return [None] * len(inputs)
    value = value.to(record.k.dtype)
    return torch.autograd.grad(record.k, inputs, value, retain_graph=keep, allow_unused=True)


def norm(residuals: Sequence[Tensor]) -> float:
    """``sqrt(Σ_j ‖r_j‖²)``, read from the device once."""
    if not residuals:
        return 0.0
    norms = [torch.linalg.vector_norm(r.detach()).double() for r in residuals]
    return math.sqrt(float(sum(value.to(norms[0].device) ** 2 for value in norms)))


# Around a call ------------------------------------------------------------------------------------------------------

_AS_IT_IS: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Without autocast's cache: no weight that was cast in one sweep, perhaps without a graph, is found in another."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
