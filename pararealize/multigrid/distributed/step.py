"""A rank's layers and the inputs -> its part of one step of layer-parallel multigrid, forward and backward.

stem            on the first rank; contexts (what layers read besides) are sent to the ranks that read them
forward solve   every rank runs the loop of multigrid/solver/solver.py on remote values (spmd.py)
last sweep      every rank through its own intervals; nothing is sent
head, loss      on the last rank
adjoint         the same loop backwards in time; gradients of parameters stay where they arise
contexts        their gradients go back to the first rank, which differentiates the stem
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.distributed.activity import Activity
from pararealize.distributed.autograd_cuts import add_gradients, as_leaf, differentiable_tensors, differentiate
from pararealize.distributed.gradients import GradientSync
from pararealize.distributed.messages.formats import is_integral
from pararealize.distributed.messages.message_order import StepMessages
from pararealize.distributed.rank_modules import RankModules
from pararealize.distributed.rank_setup import RankSetup
from pararealize.multigrid.solver.convergence import Convergence, StepNorms
from pararealize.multigrid.solver.layers import Layer
from pararealize.multigrid.solver.propagators import Adjoint, Forward, TimeStep, without_autocast_cache
from pararealize.multigrid.solver.settings import Settings
from pararealize.multigrid.solver.solver import Solution, solve_and_sweep
from pararealize.plan.actions import Direction

from .partition import SEED, LayerPartition
from .spmd import ReceiveOrder, RemoteMaps, RemoteValue, SpmdContext

__all__ = ["LayerStep", "LayerValues", "RankLayers"]

_ACTIONS = {"relax": "f_{j}", "coarse": "the coarse step of f_{j}", "sweep": "the last sweep from f_{j}"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RankLayers:
    """The parts of a layer-parallel network that one rank owns.

    Attributes:
        partition: which rank owns what.
        rank: this one.
        parts: the rank's parts by name; the first rank's have the stem, the last rank's the head.
        rows: the rank's layers by number, each of which can be run.
        head_reads: the numbers of the contexts that the head reads.
    """

    partition: LayerPartition
    rank: int
    parts: Mapping[str, nn.Module]
    rows: Mapping[int, TimeStep]
    head_reads: tuple[int, ...]

    @classmethod
    def of(
        cls,
        partition: LayerPartition,
        rank: int,
        modules: RankModules,
        layers: Mapping[int, Layer],
        head_reads: tuple[int, ...],
    ) -> RankLayers:
        """The rank's parts over its modules.

        Args:
            partition: which rank owns what.
            rank: this one.
            modules: of the rank.
            layers: the rank's, by number.
            head_reads: the numbers of the contexts that the head reads.
        """
        # the solver calls the parts themselves, so that hooks on them run
        rows = {n: TimeStep(modules.tree, layer, modules.parts[f"f{n}"]) for n, layer in layers.items()}
        return cls(partition=partition, rank=rank, parts=modules.parts, rows=rows, head_reads=head_reads)

    def over(self, modules: RankModules) -> RankLayers:
        """The same parts over copies of the modules."""
        layers = {n: row.layer for n, row in self.rows.items()}
        return RankLayers.of(self.partition, self.rank, modules, layers, self.head_reads)

    def last_phases(self) -> dict[str, int]:
        """For each part, by name, the backward call that reaches it: of the head, of the layers, of the stem."""
        return {part.name: {"head": 0, "stem": 2}.get(part.kind, 1) for part in self.partition.parts_of(self.rank)}


@dataclasses.dataclass(slots=True)
class LayerValues:
    """What a rank's step of a layer-parallel network keeps from forward to backward.

    Attributes:
        spmd: the common program's run.
        settings: of the step.
        shapes: of the inputs.
        stem_output: what the stem gave, with its graph, on the first rank.
        stem_contexts: contexts with their graphs, on the first rank.
        contexts: contexts as layers read them, by number; leaves where they have gradients.
        maps: the recorded layers.
        head_input: what entered the head, a leaf, on the last rank.
        output: of the head.
        norms: of the step.
    """

    spmd: SpmdContext
    settings: Settings
    shapes: tuple[Any, ...]
    stem_output: Tensor | None = None
    stem_contexts: tuple[Any, ...] = ()
    contexts: dict[int, Any] = dataclasses.field(default_factory=dict)
    maps: Forward | None = None
    head_input: Tensor | None = None
    output: Any = None
    norms: StepNorms = dataclasses.field(default_factory=StepNorms)


class LayerStep:
    """The part that one rank of a layer-parallel network has in every step.

    Args:
        layers: of the rank.
        activity: is told of each action.
        sync: averages and sums gradients around the backward calls.
        settings: of the first step.

    Attributes:
        settings: of the next step; the same on all ranks.
        history: residual norms of the last steps, the same on all ranks.
        receive_orders: for each kind of step the values that come, in their order.
    """

    def __init__(self, layers: RankLayers, activity: Activity, sync: GradientSync, settings: Settings) -> None:
        self.settings, self.history = settings, Convergence()
        self.receive_orders: dict[tuple[int | str, ...], ReceiveOrder] = {}
        self._layers, self._activity, self._sync = layers, activity, sync
        self._first, _ = layers.partition.runs[layers.rank]  # of the rank's intervals
        self._differentiable = [(i, value) for i, value in enumerate(layers.partition.values) if value.differentiable]
        # Shapes of the inputs, and the C-points that a warm start begins from: owner, place and, on the owner, tensor.
        self._saved: dict[Direction, tuple[tuple[Any, ...], list[tuple[int, str, Tensor | None]]]] = {}

    def copied(self, setup: RankSetup, memo: dict[int, Any]) -> LayerStep:
        """The same over a deep copy of the rank's modules; it begins cold and without norms, as in one process."""
        copied = LayerStep(self._layers.over(setup.modules), setup.activity, setup.sync, self.settings)
        memo[id(self.history)] = copied.history  # the stage's, too
        return copied

    def forget(self) -> None:
        """Drop the states that a warm start would begin from."""
        self._saved.clear()

    def warm_starts(self, inputs: Mapping[str, Any]) -> list[Direction]:
        """Which solves of a step with these inputs begin from states of the last one."""
        ways: tuple[Direction, ...] = ("forward", "backward")
        return [way for way in ways if self._points(way, self.settings, _shapes(inputs)) is not None]

    def forward(self, inputs: Mapping[str, Any], messages: StepMessages, *, graph: bool) -> LayerValues:
        """All that a rank computes and sends, up to the network's output on the last rank.

        Args:
            inputs: the network's inputs by name.
            messages: for inputs like these.
            graph: whether there will be a backward.

        Raises:
            MultigridError: the gradient of a layer's parameter has a hook.
        """
        layers, partition = self._layers, self._layers.partition
        for row in layers.rows.values() if graph else ():
            row.check_hooks()
        run = self._begin(inputs, messages)
        seed = self._compute_stem(run, inputs, messages, graph=graph)
        contexts = [run.contexts.get(i) for i in range(len(partition.values))]
        run.maps = Forward(layers.rows, partition.hierarchy, contexts, seed, recording=graph)
        start = None if run.stem_output is None else run.stem_output.detach()
        with without_autocast_cache():
            end, solution = self._solve(run, "forward", RemoteValue(run.spmd, 0, "u_0", start), run.maps)
        run.norms.forward, run.norms.forward_size = solution.residuals, solution.size
        value = end.on(partition.ranks - 1)
        run.spmd.end_solve()
        if layers.rank == partition.ranks - 1:
            assert value is not None
            run.head_input = value.detach().requires_grad_(graph)
            with self._activity.during("head", self._first):
                u = run.head_input.clone() if graph else run.head_input  # the head may change it in place: it is a leaf
                run.output = layers.parts["head"](u, *(run.contexts[i] for i in layers.head_reads))
        if not graph:
            self._end(run)
        return run

    def trial(self, inputs: Mapping[str, Any], *, whole: bool) -> None:
        """What the first rank makes of inputs by itself: its stem, and its first layer as a whole or for integers."""
        u, *contexts = self._layers.parts["stem"](*inputs.values())
        row = self._layers.rows[min(self._layers.rows)]
        reads = [contexts[i] for i in row.layer.reads]
        if whole or any(map(is_integral, reads)):
            row.f(u, *reads)

    def backward(
        self, run: LayerValues, messages: StepMessages, loss: Tensor | None, share: Callable[[], None]
    ) -> None:
        """All that a rank differentiates: gradients stand in its parameters' ``grad`` behind it.

        Args:
            run: what its forward pass kept.
            messages: of the step.
            loss: on the last rank, what to differentiate.
            share: begins to give the loss to all ranks; it is called where nothing waits for it.
        """
        layers, partition = self._layers, self._layers.partition
        assert run.maps is not None
        gradient = None
        with self._sync.phase(0):
            if loss is not None:
                assert run.head_input is not None
                with self._activity.during("head", self._first, "backward"):
                    torch.autograd.backward(loss)
                gradient = torch.zeros_like(run.head_input) if run.head_input.grad is None else run.head_input.grad
        share()
        leaves = self._context_leaves(run)
        parameters = list({id(p): p for row in layers.rows.values() for p in row.parameters()}.values())
        adjoint = Adjoint(run.maps, [*leaves, *parameters])
        start = RemoteValue(run.spmd, partition.ranks - 1, f"λ_{partition.hierarchy.layers}", gradient)
        end, solution = self._solve(run, "backward", start, adjoint)
        gradient = end.on(0)
        run.spmd.end_solve()
        run.norms.backward, run.norms.backward_size = solution.residuals, solution.size
        # by backward calls, not by hand: they add to ``grad`` as autograd does, and run the hooks that averages need
        with self._sync.phase(1):
            differentiate((parameter, adjoint.gradients.get(id(parameter))) for parameter in parameters)
        differentiate((leaf, adjoint.gradients.get(id(leaf))) for leaf in leaves)
        self._return_context_gradients(run, messages)
        if layers.rank == 0:
            with self._sync.phase(2), self._activity.during("stem", self._first, "backward"):
                self._differentiate_stem(run, gradient)
        self._end(run)

    def _begin(self, inputs: Mapping[str, Any], messages: StepMessages) -> LayerValues:
        """The common program's run: what it receives in which order is known from the last run of the same program."""
        settings = self.settings
        order = None
        if settings.tolerance == 0:  # otherwise residuals decide where the program ends
            order = self.receive_orders.setdefault((id(messages), *self.warm_starts(inputs)), ReceiveOrder())
        return LayerValues(SpmdContext(messages, order, settings.tolerance), settings, _shapes(inputs))

    def _end(self, run: LayerValues) -> None:
        """The ranks meet to put in norms that were not known at once; where nothing was left to correct, rows end."""
        norms = run.norms
        if run.settings.tolerance == 0:
            values = iter(run.spmd.norms())
            for row, size in ((norms.forward, "forward_size"), (norms.backward, "backward_size")):
                if row:
                    row[:] = [next(values) for _ in row]
                    setattr(norms, size, next(values))
                if 0.0 in row:
                    del row[row.index(0.0) + 1 :]
        if not run.settings.exact:
            self.history.append(norms)

    # The layers ------------------------------------------------------------------------------------------------------

    def _points(
        self, way: Direction, settings: Settings, shapes: tuple[Any, ...]
    ) -> list[tuple[int, str, Tensor | None]] | None:
        """What a solve begins from, where it begins warm."""
        saved_shapes, points = self._saved.get(way, (None, None)) if settings.warm_start else (None, None)
        return points if saved_shapes == shapes else None

    def _solve(
        self, run: LayerValues, way: Direction, u: RemoteValue, maps: Forward | Adjoint
    ) -> tuple[RemoteValue, Solution]:
        """A solve and the last sweep, forward or backward."""

        def place(n: int, width: int) -> str:
            return f"u_{n + width}" if way == "forward" else f"λ_{n}"

        def begin(action: str, n: int) -> None:
            self._activity.watch.doing(f"{_ACTIONS[action].format(j=n)} {way}")

        run.spmd.begin_solve()
        remote = RemoteMaps(run.spmd, maps, self._layers.partition.owners, place, begin)
        points = self._points(way, run.settings, run.shapes)
        end, solution = solve_and_sweep(
            u,
            maps.hierarchy,
            remote.step,
            remote.sweep,
            serial=run.settings.exact,
            announce=remote.announce,
            start=None if points is None else [RemoteValue(run.spmd, *point) for point in points],
            norm=run.spmd.norm,
            **run.settings.of_solve(way),
        )
        if run.settings.warm_start and solution.points:
            ends = [(point.owner, point.place, point.tensor) for point in solution.points[1:]]
            self._saved[way] = run.shapes, ends
        return end, solution

    # Stem and contexts -----------------------------------------------------------------------------------------------

    def _compute_stem(self, run: LayerValues, inputs: Mapping[str, Any], messages: StepMessages, *, graph: bool) -> int:
        """Run the stem on the first rank, give contexts to those who read them, and the seed of the step to all."""
        partition, rank = self._layers.partition, self._layers.rank
        draws_here = any(row.may_draw() for row in self._layers.rows.values())
        seed = 0
        if rank == 0:
            stem = self._layers.parts["stem"]
            with self._activity.during("stem", self._first):
                run.stem_output, *contexts = stem(*inputs.values())
            run.stem_contexts = tuple(contexts)
            if draws_here or partition.random_in_eval or (partition.random and stem.training):
                seed = int(torch.randint(1 << 62, ()))
            for reader in range(1, partition.ranks) if partition.random else ():
                messages.send(SEED, torch.tensor(seed, device=messages.channel.device), reader)
        elif partition.random:
            seed = int(messages.receive(messages.expect(SEED, 0)))
            if draws_here and not seed:  # dropout of this rank alone is in train mode, which the first one cannot know
                seed = int(torch.randint(1 << 62, ()))
        for i, value in enumerate(partition.values):
            if rank == 0:
                for reader in value.readers:
                    messages.send(value.name, run.stem_contexts[i], reader)
                run.contexts[i] = run.stem_contexts[i]
            elif rank in value.readers:
                run.contexts[i] = messages.receive(messages.expect(value.name, 0))
            if graph and value.differentiable and i in run.contexts:
                run.contexts[i] = as_leaf(run.contexts[i])
        return seed

    def _context_leaves(self, run: LayerValues) -> list[Tensor]:
        """The leaves of this rank's contexts that have gradients."""
        return [leaf for i, _ in self._differentiable for leaf in differentiable_tensors(run.contexts.get(i))]

    def _return_context_gradients(self, run: LayerValues, messages: StepMessages) -> None:
        """Gradients of contexts go to the first rank, and are added up there."""
        for i, value in self._differentiable:
            leaves = differentiable_tensors(run.contexts.get(i))
            if self._layers.rank in value.readers:
                messages.send_gradients(value.name, [leaf.grad for leaf in leaves], 0)
            elif self._layers.rank == 0:
                for reader in value.readers:
                    add_gradients(leaves, messages.receive_gradients(messages.expect_gradients(value.name, reader)))

    def _differentiate_stem(self, run: LayerValues, gradient: Tensor | None) -> None:
        assert run.stem_output is not None
        pairs = [(run.stem_output, gradient)]
        for i, _ in self._differentiable:
            ends, leaves = differentiable_tensors(run.stem_contexts[i]), differentiable_tensors(run.contexts[i])
            pairs += [(end, leaf.grad) for end, leaf in zip(ends, leaves, strict=True)]
        differentiate(pairs)


def _shapes(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What has to be alike for states to fit: shapes of the inputs, and the state of autocast, which gives types."""
    autocast = tuple(torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda"))
    return *autocast, *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs.values())
