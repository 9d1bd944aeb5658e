"""A rank's layers and the inputs -> its part of one step of layer-parallel multigrid, forward and backward.

stem            on the first rank; what layers read besides is sent to the ranks that read it
forward solve   every rank runs the loop of multigrid.py on held values (held.py)
last sweep      every rank through its own intervals; nothing is sent
head, loss      on the last rank
adjoint         the same loop backwards in time; gradients of parameters stay where they arise
contexts        their gradients go back to the first rank, which differentiates the stem
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pararealize.distributed.p2p import Kinds
from pararealize.distributed.rank import OwnParts, leaf_of, tensors_with_gradients
from pararealize.multigrid.solver.convergence import StepNorms
from pararealize.multigrid.solver.propagators import Adjoint, Forward, TimeStep, without_autocast_cache
from pararealize.multigrid.solver.settings import Settings
from pararealize.multigrid.solver.solver import Solution, solve_and_sweep
from pararealize.plan.actions import Direction

from .partition import LayerPartition
from .remote import Across, Held, Line

__all__ = ["LayerPass", "OwnLayers", "backward", "forward", "settle"]

_SEED, _CONTEXT = 2, 3  # tags; TAG of held.py is 1
_ACTIONS = {"relax": "f_{j}", "coarse": "the coarse step of f_{j}", "sweep": "the last sweep from f_{j}"}


@dataclasses.dataclass(slots=True, kw_only=True)
class OwnLayers(OwnParts):
    """What a rank owns of a layer-parallel network.

    Attributes:
        layout: who owns what.
        rows: the layers that stand here.
        head_reads: the contexts that the head reads.
        orders: for each kind of step, the values that come, in their order.
        states: of each direction, the shapes of the last step's inputs, and owner, place and tensor of its C-points.
    """

    layout: LayerPartition
    rows: Mapping[int, TimeStep]
    head_reads: tuple[int, ...]
    orders: dict[tuple[int, ...], list[tuple[str, int]]] = dataclasses.field(default_factory=dict)
    states: dict[str, tuple[tuple[Any, ...], list[tuple[int, str, Tensor | None]]]] = dataclasses.field(
        default_factory=dict
    )

    def begins(self, direction: str) -> Callable[[str, int], None]:
        """What is told of each action of a pass."""
        return lambda action, n: self.watch.doing(f"{_ACTIONS[action].format(j=n)} {direction}")

    def doing(self, action: str, direction: str = "forward") -> contextlib.AbstractContextManager[None]:
        """Around an action."""
        return self.telling(action, action, self.first, direction)

    def phases(self) -> dict[str, int]:
        """For each part, the number of the backward call that reaches it: of the head, the layers, the stem."""
        return {name: {"head": 0, "stem": 2}.get(name, 1) for name in self.parts}


@dataclasses.dataclass(slots=True)
class LayerPass:
    """What a step keeps from forward to backward.

    Attributes:
        line: the ranks.
        kinds: of the messages.
        settings: of the step.
        shapes: of the inputs.
        entered: what the stem gave, with its graph, on the first rank.
        made: contexts with their graphs, on the first rank.
        context: contexts as layers read them, by number; leaves where they have gradients.
        maps: the recorded layers.
        left: what entered the head, a leaf, on the last rank.
        output: of the head.
        norms: of the step.
    """

    line: Line
    kinds: Kinds
    settings: Settings
    shapes: tuple[Any, ...]
    entered: Tensor | None = None
    made: tuple[Any, ...] = ()
    context: dict[int, Any] = dataclasses.field(default_factory=dict)
    maps: Forward | None = None
    left: Tensor | None = None
    output: Any = None
    norms: StepNorms = dataclasses.field(default_factory=StepNorms)


def forward(own: OwnLayers, inputs: Mapping[str, Any], kinds: Kinds, settings: Settings, *, graph: bool) -> LayerPass:
    """All that a rank computes and sends, up to the network's output on the last rank.

    Args:
        own: the rank.
        inputs: the network's inputs by name.
        kinds: what messages look like for inputs like these; filled in the first time.
        settings: of the step.
        graph: whether there will be a backward.
    """
    known = settings.tolerance == 0
    shapes = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs.values())
    starts = [settings.warm_start and own.states.get(way, (None,))[0] == shapes for way in ("forward", "backward")]
    line = Line(own.wire, kinds, own.orders.setdefault((id(kinds), *starts), []) if known else None, settings.tolerance)
    run = LayerPass(line, kinds, settings, shapes)
    seed = _enter(own, run, inputs, graph=graph)
    context = [run.context.get(i) for i in range(len(own.layout.values))]
    run.maps = Forward(own.rows, own.layout.hierarchy, context, seed, recording=graph)
    entered = None if run.entered is None else run.entered.detach()
    with without_autocast_cache():
        end, found = _pass(own, run, "forward", line.value(0, "u_0", entered), run.maps)
    run.norms.forward, run.norms.forward_size = found.residuals, found.size
    value = end.on(own.layout.ranks - 1)
    if own.is_last:
        assert value is not None
        run.left = value.detach().requires_grad_(graph)
        with own.doing("head"):
            u = run.left.clone() if graph else run.left  # the head may change it in place, and it is a leaf
            run.output = own.parts["head"](u, *(run.context[i] for i in own.head_reads))
    return run


def backward(own: OwnLayers, run: LayerPass, loss: Tensor | None, share: Callable[[], None]) -> None:
    """All that a rank differentiates: gradients stand in its parameters' ``grad`` behind it.

    Args:
        own: the rank.
        run: its forward.
        loss: on the last rank, what to differentiate.
        share: begins to give the loss to all ranks; it is called where nothing waits for it.
    """
    assert run.maps is not None
    gradient = None
    with own.phase(0):
        if loss is not None:
            assert run.left is not None
            with own.doing("head", "backward"):
                torch.autograd.backward(loss)
            gradient = torch.zeros_like(run.left) if run.left.grad is None else run.left.grad
    share()
    leaves = {id(leaf): leaf for i, leaf in _leaves(own, run)}
    parameters = {id(p): p for row in own.rows.values() for p in row.parameters()}
    adjoint = Adjoint(run.maps, [*leaves.values(), *parameters.values()])
    value = run.line.value(own.layout.ranks - 1, f"λ_{own.layout.hierarchy.layers}", gradient)
    end, found = _pass(own, run, "backward", value, adjoint)
    run.norms.backward, run.norms.backward_size = found.residuals, found.size
    with own.phase(1):
        _accumulate(parameters, adjoint.gradients)
    _accumulate(leaves, adjoint.gradients)
    _return_contexts(own, run)
    if own.rank == 0:
        with own.phase(2), own.doing("stem", "backward"):
            _leave(own, run, end.on(0))
    else:
        end.on(0)
    settle(run)


# The layers ----------------------------------------------------------------------------------------------------------


def _pass(own: OwnLayers, run: LayerPass, way: Direction, u: Held, maps: Forward | Adjoint) -> tuple[Held, Solution]:
    """A solve and the last sweep, forward or backward."""
    settings, forwards = run.settings, way == "forward"
    names = (lambda n, width: f"u_{n + width}") if forwards else (lambda n, width: f"λ_{n}")  # noqa: ARG005
    across = Across(run.line, maps, own.layout.owners, names, own.begins(way))
    kept = own.states.get(way) if settings.warm_start else None
    start = [run.line.value(*point) for point in kept[1]] if kept is not None and kept[0] == run.shapes else None
    end, found = solve_and_sweep(
        u,
        maps.hierarchy,
        across.step,
        across.sweep,
        serial=settings.exact,
        announce=across.announce,
        start=start,
        norm=run.line.norm,
        **settings.of_solve(way),
    )
    if settings.warm_start and found.points:
        own.states[way] = run.shapes, [(point.owner, point.place, point.tensor) for point in found.points[1:]]
    return end, found


def _accumulate(tensors: Mapping[int, Tensor], gradients: Mapping[int, Tensor]) -> None:
    """Add to ``grad`` as autograd does, hooks included."""
    found = [(tensor, gradients[key]) for key, tensor in tensors.items() if key in gradients]
    if found:
        torch.autograd.backward([tensor for tensor, _ in found], [gradient for _, gradient in found])


def settle(run: LayerPass) -> None:
    """The ranks meet to put in norms that were not known at once; where nothing was left to correct, rows end."""
    if run.settings.tolerance > 0:
        return
    known, norms = iter(run.line.norms()), run.norms
    for row, size in ((norms.forward, "forward_size"), (norms.backward, "backward_size")):
        if row:
            row[:] = [next(known) for _ in row]
            setattr(norms, size, next(known))
        if 0.0 in row:
            del row[row.index(0.0) + 1 :]


# Stem and contexts ---------------------------------------------------------------------------------------------------


def _enter(own: OwnLayers, run: LayerPass, inputs: Mapping[str, Any], *, graph: bool) -> int:
    """Run the stem on the first rank, give what it made to those who read it, and the seed of the step to all."""
    random = own.layout.random
    seed = 0
    if own.rank == 0:
        with own.doing("stem"):
            run.entered, *made = own.parts["stem"](*inputs.values())
        run.made = tuple(made)
        seed = int(torch.randint(1 << 62, ())) if random and own.parts["stem"].training else 0
        for rank in range(1, own.layout.ranks) if random else ():
            own.wire.send("the seed", torch.tensor(seed, device=own.wire.device), rank, _SEED, run.kinds)
    elif random:
        seed = int(own.wire.take(own.wire.expect("the seed", 0, _SEED, run.kinds), run.kinds))
    for i, value in enumerate(own.layout.values):
        tag = _CONTEXT + 2 * i
        if own.rank == 0:
            for reader in value.readers:
                own.wire.send(value.name, run.made[i], reader, tag, run.kinds)
            run.context[i] = run.made[i]
        elif own.rank in value.readers:
            run.context[i] = own.wire.take(own.wire.expect(value.name, 0, tag, run.kinds), run.kinds)
        if graph and value.differentiable and i in run.context:
            run.context[i] = leaf_of(run.context[i])
    return seed


def _leaves(own: OwnLayers, run: LayerPass) -> list[tuple[int, Tensor]]:
    """The leaves of contexts that have gradients, each with the context's number."""
    return [
        (i, leaf)
        for i, value in enumerate(own.layout.values)
        if value.differentiable and i in run.context
        for leaf in tensors_with_gradients(run.context[i])
    ]


def _return_contexts(own: OwnLayers, run: LayerPass) -> None:
    """Gradients of contexts go to the first rank, and are added up there."""
    for i, value in enumerate(own.layout.values):
        if not value.differentiable:
            continue
        tag = _CONTEXT + 2 * i + 1
        if own.rank in value.readers:
            gradients = [leaf.grad for leaf in tensors_with_gradients(run.context[i])]
            own.wire.send_back(value.name, gradients, 0, tag, run.kinds)
        elif own.rank == 0:
            leaves = tensors_with_gradients(run.context[i])
            for reader in value.readers:
                found = own.wire.take_back(own.wire.expect_back(value.name, reader, tag, run.kinds))
                for leaf, gradient in zip(leaves, found, strict=True):
                    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _leave(own: OwnLayers, run: LayerPass, gradient: Tensor | None) -> None:
    """Differentiate the stem."""
    assert run.entered is not None
    made: list[Tensor | None] = [run.entered]
    gradients = [gradient]
    for i, value in enumerate(own.layout.values):
        if value.differentiable:
            made += tensors_with_gradients(run.made[i])
            gradients += [leaf.grad for leaf in tensors_with_gradients(run.context[i])]
    pairs = [
        (m, g) for m, g in zip(made, gradients, strict=True) if m is not None and m.requires_grad and g is not None
    ]
    if pairs:
        torch.autograd.backward([m for m, _ in pairs], [g for _, g in pairs])
