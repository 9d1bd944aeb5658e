r"""Layers and the values of one step -> the maps Φ and their transposes that the solver iterates with.

    f_n(u)              k, the increment of layer n at u
    Φ_n^w(u)            u + w·k, or relu(u + w·k)          w = 1 on the finest level; a fixed layer is its own map
    (Φ_n^w)ᵀ(λ)         μ + w·(∂f_n/∂u)ᵀμ,  μ = λ, or λ where relu passes it on

The last sweep builds one autograd graph a layer. It starts from every U_jc, so the graph of f at U_jc serves the coarse
transposes as well: they recompute nothing.
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

from pararealize.distributed.activation_checkpoint import preserved_buffers
from pararealize.errors import MultigridError
from pararealize.random_state import seeded_state
from pararealize.restore import left_as_found
from pararealize.tracing.captured import Capture
from pararealize.tracing.hooks import tensor_hook_of
from pararealize.tracing.module_view import Piece
from pararealize.tracing.regions import Checkpoint

from .hierarchy import Hierarchy
from .layers import Layer

__all__ = [
    "Adjoint",
    "Forward",
    "LayerEvaluation",
    "TimeStep",
    "check_parameter_hooks",
    "check_replay",
    "norm",
    "without_autocast_cache",
]

_TIMES = 8  # evaluations of a layer: a mask that is drawn anew each time is hardly the same in all
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class TimeStep:
    """A layer that can be run: its graph over the network's own modules.

    Args:
        tree: the network's modules.
        layer: its description.
        f: the map as a module, where there is one already.

    Attributes:
        layer: its description.
        f: the map, called with u and its context.
        computes_anew: whether differentiating it may call it once more, as checkpoints do, or a call not looked into.
    """

    def __init__(self, tree: nn.Module, layer: Layer, f: nn.Module | None = None) -> None:
        self.layer = layer
        self.f = Piece(tree, layer.graph, f"Layer{'' if layer.fixed else 'F'}") if f is None else f
        # Where parameters are looked up anew in each step: modules with all they have, or with one tensor that f reads.
        self._owners: list[tuple[str, nn.Module, str | None]] = []
        for node in layer.graph.nodes:
            path = str(node.target)
            if node.op == "call_module":
                self._owners.append((path, self.f.get_submodule(path), None))
            elif node.op == "get_attr":
                owner, _, name = path.rpartition(".")
                self._owners.append((path, self.f.get_submodule(owner), name))
        regions = (node.meta.get("region") or () for node in layer.graph.nodes)
        self.computes_anew = layer.opaque or any(isinstance(c, Checkpoint) for region in regions for c in region)

    @property
    def has_buffers(self) -> bool:
        """Whether calling it may change buffers, of modules as they are now."""
        modules = (owner.modules() if name is None else (owner,) for _, owner, name in self._owners)
        return any(module._buffers for some in modules for module in some)

    def advance(self, u: Tensor, k: Tensor, width: int = 1) -> Tensor:
        """The value behind a step of some width, from the one before it and what ``f`` gave for that."""
        if self.layer.fixed:
            return k
        moved = torch.add(u, k, alpha=width)
        return torch.relu_(moved) if self.layer.post else moved

    def may_draw(self) -> bool:
        """Whether it may draw random numbers, in the modes that its modules have now."""
        layer = self.layer
        return layer.random and (layer.random_in_eval or any(module.training for module in self.f.modules()))

    def parameters(self) -> list[Tensor]:
        """The parameters that it reads and that are trained; they may have been replaced since the last step."""
        return list({id(tensor): tensor for _, tensor in self._named_parameters()}.values())

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for path, owner, name in self._owners:
            # all of a module, with submodules that it has got since, as a parametrization is one
            tensors = owner.named_parameters(path) if name is None else ((path, owner._parameters.get(name)),)
            yield from ((name, tensor) for name, tensor in tensors if tensor is not None and tensor.requires_grad)

    def check_hooks(self) -> None:
        """Refuse hooks that have been registered on its parameters' gradients.

        Raises:
            MultigridError: there is one.
        """
        for name, parameter in self._named_parameters():
            if hook := tensor_hook_of(parameter, accumulated=False):  # what is accumulated is the whole gradient
                raise _hook_error(name, hook)


def check_parameter_hooks(model: nn.Module) -> None:
    """Refuse hooks of parameters, of layers or not; those that are registered later are looked for in each call.

    Raises:
        MultigridError: there is one.
    """
    for name, parameter in model.named_parameters():
        if hook := tensor_hook_of(parameter):
            raise _hook_error(name, hook)


def _hook_error(name: str, hook: str) -> MultigridError:
    """What to say of a parameter's hook: a solve computes gradients in several passes."""
    return MultigridError(
        f"{name} has the hook {hook}, which every pass of a solve would call with a part of the gradient; "
        "remove it, and change the gradient after backward"
    )


@dataclasses.dataclass(slots=True)
class LayerEvaluation:
    """f at a value u.

    Attributes:
        u: the value, the very tensor that the solver passed: an evaluation is found again by its identity.
        leaf: u as the leaf of f's autograd graph.
        k: what f gave: the increment, or a fixed layer's next value.
    """

    u: Tensor
    leaf: Tensor
    k: Tensor


class Forward:
    """The fine and coarse maps of one step of training, or of one evaluation.

    Within it each Φ_n is one and the same function, however often the iteration calls it: random numbers are drawn
    anew from one seed, and buffers stay what they were before the step until the last sweep moves them.

    Args:
        rows: the layers by their numbers; no map is asked for those that another rank owns.
        hierarchy: their levels.
        context: the values of the contexts, leaves where they need gradients.
        seed: the seed of this step's random numbers: layer n draws from ``seed + n`` in every sweep.
        recording: whether an adjoint will follow.

    Attributes:
        evaluations: every layer's evaluation in the last sweep, with its autograd graph, where ``recording``.
        with_buffers: the numbers of the layers that may change buffers.
    """

    def __init__(
        self, rows: Mapping[int, TimeStep], hierarchy: Hierarchy, context: Sequence[Any], seed: int, *, recording: bool
    ) -> None:
        self.rows, self.hierarchy, self.context, self.seed, self.recording = rows, hierarchy, context, seed, recording
        self.evaluations: dict[int, LayerEvaluation] = {}
        # At a C-point three readers want f of one value: the coarse step, the first step of F-relaxation, and the last
        # sweep. The first layer of every interval therefore keeps its latest evaluation for the others. The last sweep
        # may take it over only from layers without buffers: relaxation runs the rest on copies of them, so that it is
        # their evaluation in the last sweep alone that a batch norm counts.
        self._first_layers = {first for first, _ in hierarchy.levels[0].intervals}
        self.with_buffers = {n for n, row in rows.items() if row.has_buffers}
        self._reusable = {n for n in self._first_layers if n in rows and n not in self.with_buffers}
        self._latest: dict[int, LayerEvaluation] = {}

    def step(self, level: int, s: int, u: Tensor) -> Tensor:
        """``Φ_s^l(u)``, as :func:`~pararealize.multigrid.solver.solver.solve` takes it; buffers stay as they are."""
        step = self.hierarchy.levels[level].steps[s]
        n, row = step.layer, self.rows[step.layer]
        evaluation = self._latest.get(n)
        if evaluation is None or evaluation.u is not u:
            with preserved_buffers(row.f) if n in self.with_buffers else _NOTHING:
                evaluation = self._evaluate(n, u, graph=self.recording and n in self._reusable)
            if n in self._first_layers:
                self._latest[n] = evaluation
        return row.advance(u, evaluation.k.detach(), step.width)

    def sweep(self, j: int, u: Tensor) -> Tensor:
        """The last sweep of interval j from its C-point: moves buffers, once a step, and builds the graphs."""
        for n in self.hierarchy.layers_of(j):
            evaluation = self._latest.pop(n, None)
            if evaluation is None or evaluation.u is not u or n not in self._reusable:
                evaluation = self._evaluate(n, u, graph=self.recording)
            if self.recording:
                self.evaluations[n] = evaluation
            u = self.rows[n].advance(u, evaluation.k.detach())
        return u

    def _evaluate(self, n: int, u: Tensor, *, graph: bool) -> LayerEvaluation:
        row = self.rows[n]
        leaf = u.detach().requires_grad_(graph)
        arguments = [self.context[i] for i in row.layer.reads]
        # One seed a layer and step, so that each sweep drops what the others drop: otherwise the iteration would chase
        # a network that is another in every sweep, and the adjoint would differentiate a third.
        with torch.set_grad_enabled(graph), seeded_state(self.seed + n, [u.device]) if row.layer.random else _NOTHING:
            k = row.f(leaf, *arguments)
        return LayerEvaluation(u=u, leaf=leaf, k=k)


class Adjoint:
    """The transposes of the fine and coarse maps, at the values of the forward pass's last sweep.

    The derivatives are those of one linearisation, at the values that the forward solve ended with, so that the adjoint
    solve is a linear problem: with as many iterations as intervals its result is the gradient of the last sweep itself.

    Args:
        forward: the maps, whose last sweep has run.
        inputs: parameters and contexts whose gradients are asked for.
        keep: whether the graphs are to stay, for another adjoint.

    Attributes:
        gradients: the gradients of ``inputs``, by their ids, added up over the layers by the last sweep.
    """

    def __init__(self, forward: Forward, inputs: Sequence[Tensor], *, keep: bool = False) -> None:
        self.forward, self.keep = forward, keep
        self.hierarchy = forward.hierarchy.reversed()
        self.gradients: dict[int, Tensor] = {}
        self._inputs = {id(tensor) for tensor in inputs}
        self._latest: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (layer, width) -> λ, and its transpose

    def step(self, level: int, s: int, value: Tensor) -> Tensor:
        """``(Φ_s^l)ᵀ λ`` with time running backwards; no gradients of parameters, and the graph stays for the sweep."""
        step = self.hierarchy.levels[level].steps[s]
        key = n, width = step.layer, step.width
        if key not in self._latest or self._latest[key][0] is not value:
            # What is computed anew moves buffers once more, as in any backward: that of the last sweep is the one.
            row = self.forward.rows[n]
            moves = row.computes_anew and n in self.forward.with_buffers
            with preserved_buffers(row.f) if moves else _NOTHING:
                self._latest[key] = value, self._transpose(n, width, value, {}, keep=True)
        return self._latest[key][1]

    def sweep(self, j: int, value: Tensor) -> Tensor:
        """The last sweep of interval j (counted backwards) from λ at its right end: gradients of all else as well."""
        for n in self.hierarchy.layers_of(j):
            row = self.forward.rows[n]
            contexts = pytree.tree_leaves([self.forward.context[i] for i in row.layer.reads])
            inputs = {id(tensor): tensor for tensor in (*row.parameters(), *contexts) if id(tensor) in self._inputs}
            value = self._transpose(n, 1, value, inputs, keep=self.keep)
        return value

    def _transpose(self, n: int, width: int, value: Tensor, inputs: Mapping[int, Tensor], *, keep: bool) -> Tensor:
        """λ before layer n from λ behind a step of some width; gradients of ``inputs`` are added to the others."""
        evaluation, layer = self.forward.evaluations[n], self.forward.rows[n].layer
        if layer.post:  # μ, what the ReLU behind the sum lets through; it ran in place, so its sign is computed anew
            value = value * (evaluation.u + width * evaluation.k.detach() > 0)
        pullback, *gradients = _pull(evaluation, [evaluation.leaf, *inputs.values()], value, keep=keep)
        for key, gradient in zip(inputs, gradients, strict=True):
            if gradient is not None:
                self.gradients[key] = self.gradients[key] + gradient if key in self.gradients else gradient
        if layer.fixed:
            return torch.zeros_like(evaluation.leaf) if pullback is None else pullback
        return value if pullback is None else torch.add(value, pullback, alpha=width)


def _pull(
    evaluation: LayerEvaluation, inputs: Sequence[Tensor], value: Tensor, *, keep: bool
) -> Sequence[Tensor | None]:
    """The vector-Jacobian products of f with respect to some inputs; ``None`` where it does not depend on one."""
    if not evaluation.k.requires_grad:
        return [None] * len(inputs)
    value = value.to(evaluation.k.dtype)  # under autocast f may give another type than the values between layers have
    return torch.autograd.grad(evaluation.k, inputs, value, retain_graph=keep, allow_unused=True)


def norm(residuals: Sequence[Tensor]) -> float:
    """``sqrt(Σ_j ‖r_j‖²)``, read from the device once."""
    if not residuals:
        return 0.0
    norms = [torch.linalg.vector_norm(r.detach()).double() for r in residuals]
    return math.sqrt(float(sum(value.to(norms[0].device) ** 2 for value in norms)))


@contextlib.contextmanager
def without_autocast_cache() -> Iterator[None]:
    """Within it, autocast casts every weight anew.

    A weight that a sweep without a graph has cast would be found by one that builds a graph, and cut off from it
    (https://github.com/pytorch/pytorch/issues/65766).
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def check_replay(
    net: nn.Module, stem: Piece, rows: Sequence[TimeStep], hierarchy: Hierarchy, captured: Capture
) -> None:
    """Run layers that could not be looked into several times from one seed, in train mode.

    Args:
        net: the network, which is left as found.
        stem: the piece that gives the value before the first layer, and the context.
        rows: its layers in order.
        hierarchy: their levels.
        captured: what the network was made from, with its example.

    Raises:
        MultigridError: one gives other values each time: it draws from Python, NumPy or a generator of its own, and
            every sweep would see another network.
    """
    opaque = [n for n, row in enumerate(rows) if row.layer.opaque]
    if not opaque or any(parameter.is_meta for parameter in net.parameters()):
        return
    example = captured.example.resized(captured.example.batch)
    with left_as_found(net), torch.no_grad():
        for module in net.modules():
            module.training = True
        u, *context = stem(*example.tensors.values())
        forward = Forward(dict(enumerate(rows)), hierarchy, context, 0, recording=False)
        for n in range(opaque[-1] + 1):
            # A copy of u each time: the maps remember what a layer gave for one and the same tensor.
            values = [forward.step(0, n, u.clone()) for _ in range(_TIMES if n in opaque else 1)]
            if any(not torch.equal(value, values[0]) for value in values if not value.isnan().any()):
                raise MultigridError(
                    f"{rows[n].layer.name} gives other values each time although torch's seed is the same: it "
                    "draws from Python's or NumPy's random numbers, or from a generator of its own, and every sweep "
                    "would see another network; draw with torch.rand and the like, from torch's own random state"
                )
            u = values[0]
