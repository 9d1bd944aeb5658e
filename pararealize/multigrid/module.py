r"""nn.Module -> LayerParallel: forward and backward by multigrid in depth, in place of layer after layer.

    capture           nn.Module -> Capture           tracing/front_end.py
    find_layers       Capture -> Layers              multigrid/solver/layers.py
    make_hierarchy    transitions -> Hierarchy       multigrid/solver/hierarchy.py
    LayerParallel     ... -> the module              here
    LayerPropagation  a call of its layers           autograd.py, which solves with multigrid/solver/solver.py

The intervals, which several ranks work on at the same time, run here one after the other in one process: it computes
what several ranks compute (``multigrid/distributed/stage.py``).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any, overload

from torch import fx, nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.argument_types import typed_arguments
from pararealize.errors import ModelError, MultigridError
from pararealize.multigrid.distributed.distribution import distribute_layers
from pararealize.multigrid.distributed.partition import LayeredNetwork
from pararealize.multigrid.distributed.stage import LayerStage
from pararealize.multigrid.solver.convergence import Convergence
from pararealize.multigrid.solver.hierarchy import Hierarchy, make_hierarchy
from pararealize.multigrid.solver.layers import Layers, find_layers
from pararealize.multigrid.solver.propagators import TimeStep, check_parameter_hooks, check_replay
from pararealize.multigrid.solver.settings import Cycle, Relaxation, Settings
from pararealize.plan.parts import Part
from pararealize.restore import never_compiled, ordinary_mode, set_within
from pararealize.tracing.conditions import CallConditions
from pararealize.tracing.front_end import capture
from pararealize.tracing.guards import Guards
from pararealize.tracing.module_copy import bare_tree, copy_contents, copy_hooks, copy_model, share_contents
from pararealize.tracing.module_view import ModuleView
from pararealize.tracing.original import Original
from pararealize.tracing.recordings import LIMIT, Recordings

from .autograd import KeptStates, LayerPropagation
from .pieces import LayerPieces, layers_anew, watch_of, whole_graph

__all__ = ["LayerParallel", "layer_parallel"]

# Top-level names that the result needs for itself, so that no submodule may have them.
_RESERVED = sorted(
    [
        "guards",
        "hierarchy",
        "history",
        "rows",
        "states",
        "structure",
        *(field.name for field in dataclasses.fields(Settings)),
    ]
)


class LayerParallel(ModuleView, LayeredNetwork):
    """A network whose layers are solved for by multigrid in depth; its parameters keep the original's names.

    The number of iterations and the rest may be changed between steps.

    Attributes:
        structure: stem, layers and head.
        hierarchy: the levels.
        forward_iterations: k of the forward solve.
        backward_iterations: k of the adjoint solve.
        relaxation: ``"F"`` or ``"FCF"``.
        cycle: ``"V"`` or ``"F"``.
        tolerance: a solve ends early where its residual norm is at most this.
        warm_start: begin from the states of the last call with gradients, where they fit, and not from a coarse guess.
        exact: run the network as it is, bit for bit the original, and leave multigrid aside.
        history: residual norms of the last steps.
        rows: the layers in order, each of which can be run.
        runs_in_series: whether :meth:`in_series` is in force.
        guards: conditions on the inputs under which the layers are right; the original is recorded anew for others.

    Example:
        >>> import torch
        >>> from pararealize import layer_parallel
        >>> from pararealize.models import resnet56
        >>> net = layer_parallel(resnet56(), forward_iterations=2)
        >>> loss = net(torch.randn(4, 3, 8, 8)).square().mean()
        >>> loss.backward()
        >>> len(net.history[-1].forward), len(net.history[-1].backward)
        (2, 1)
    """

    structure: Layers
    hierarchy: Hierarchy
    history: Convergence
    rows: list[TimeStep]
    runs_in_series: bool
    guards: Guards
    _pieces: LayerPieces
    _recordings: Recordings[LayerPieces]
    _graph: fx.Graph
    _name: str
    _states: dict[bool, KeptStates]

    def __init__(
        self,
        tree: nn.Module,
        layers: Layers,
        hierarchy: Hierarchy,
        whole: fx.Graph,
        name: str,
        settings: Settings,
        *,
        guards: Guards,
        original: Original,
        recording_limit: int = LIMIT,
    ) -> None:
        super().__init__()
        share_contents(self, tree)
        original.give_mode(self)
        pieces, conditions = LayerPieces.of(self, layers, whole), CallConditions.of(layers.call, guards)
        watch, build = watch_of(tree, layers, whole), partial(layers_anew, self, layers)
        recordings = Recordings(conditions, original, build, watch=watch, limit=recording_limit)
        # Into ``__dict__``, past nn.Module: a piece that it registered would list the tree's parameters a second time.
        self.__dict__.update(dataclasses.asdict(settings), structure=layers, hierarchy=hierarchy, _graph=whole)
        self.__dict__.update(_pieces=pieces, rows=pieces.rows, history=Convergence())
        self.__dict__.update(
            _states={True: KeptStates(), False: KeptStates()},
            _name=name,
            runs_in_series=False,
            guards=guards,
            _recordings=recordings,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output after ``forward_iterations``; its gradient is that of ``backward_iterations``."""
        Settings.of(self).check()
        pieces = self._recordings.pick(args, kwargs) or self._pieces
        if self.exact:
            return pieces.whole(*args, **kwargs)
        return self._by_multigrid(pieces, args, kwargs)

    @never_compiled
    def _by_multigrid(self, pieces: LayerPieces, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        u, *context = pieces.stem(*pieces.structure.call.tensors(args, kwargs).values())
        propagate = LayerPropagation(
            rows=pieces.rows,
            hierarchy=self.hierarchy,
            settings=partial(Settings.of, self),
            states=self.states,
            convergence=self.history,
            serial=self.runs_in_series,
        )
        return pieces.head(propagate(u, context), *(context[i] for i in pieces.structure.head_reads))

    def serially(self) -> AbstractContextManager[None]:
        """Within it, the network runs as it is: to evaluate what was trained, or to finish with exact steps.

        Example:
            >>> import torch
            >>> from pararealize import layer_parallel
            >>> from pararealize.models import resnet20
            >>> model = resnet20().eval()
            >>> net, x = layer_parallel(model, coarsening=2), torch.randn(2, 3, 8, 8)
            >>> with net.serially():
            ...     torch.equal(net(x), model(x))
            True
        """
        return set_within(self, "exact", True)

    @property
    def states(self) -> KeptStates:
        """The values at the C-points, ``"forward"`` and ``"backward"``, that a warm start begins from in this mode."""
        return self._states[self.training]

    @property
    def call_conditions(self) -> CallConditions:
        """What the arguments of a call have to be for these layers to be right; others are recorded anew."""
        return self._recordings.first

    @property
    def part_graphs(self) -> dict[str, fx.Graph]:
        """The graphs of its parts by name: ``stem``, ``f0``, ``f1`` … of the layers, ``head``."""
        layers = {f"f{n}": layer.graph for n, layer in enumerate(self.structure.layers)}
        return {"stem": self.structure.stem, **layers, "head": self.structure.head}

    @property
    def network_parts(self) -> dict[str, Part]:
        """Every part by its name."""
        layers = [Part(kind="layer", j=n, target=f"f{n}") for n in range(len(self.structure.layers))]
        every = [Part(kind="stem", target="stem"), *layers, Part(kind="head", target="head")]
        return {part.name: part for part in every}

    def in_series(self) -> AbstractContextManager[None]:
        """Within it, layer after layer as in :meth:`serially`, but with the dropout masks that a solve would have.

        What differs from the multigrid network is then the multigrid alone; a
        :class:`~pararealize.multigrid.monitor.Monitor` compares the two.
        """
        return set_within(self, "runs_in_series", True)

    def forget(self) -> None:
        """Drop the states that a warm start would begin from."""
        for states in self._states.values():
            states.clear()

    def distribute(
        self, mesh: DeviceMesh, *, timeout: timedelta | float = 600.0, bucket_bytes: int = 25 << 20
    ) -> LayerStage:
        """Take one rank's share of the layers, to run over :mod:`torch.distributed` with the other ranks of the mesh.

        Every rank builds the same network and calls this. Each rank has consecutive intervals, the first one the stem
        besides, the last one the head; values of C-points alone cross between neighbours. Relaxation and the last sweep
        run at once on all ranks, and the result is that of one process, to rounding.

        Args:
            mesh: a device mesh with the dimension ``"parareal"``, and ``"dp"`` where there are several copies of the
                network; or one dimension without a name.
            timeout: time limit of every message, in seconds.
            bucket_bytes: size of the buckets in which gradients are averaged over dp.

        Raises:
            DistributedError: the mesh does not fit, the ranks do not agree, or one did not answer.
        """
        self._recordings.watch.check()
        return distribute_layers(self, mesh, timeout=timeout, bucket_bytes=bucket_bytes)

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerParallel:
        self._recordings.watch.check()
        copied = LayerParallel(
            copy_contents(self, memo),
            self.structure,
            self.hierarchy,
            self._graph,
            self._name,
            Settings.of(self),
            guards=self.guards,
            original=copy.deepcopy(self._recordings.original, memo),
            recording_limit=self._recordings.limit,
        )
        memo[id(self)] = copied
        copy_hooks(self, copied, memo)
        return copied

    def __reduce__(self) -> Any:
        raise ModelError(
            "a layer-parallel module is saved by its parameters, not pickled: net.state_dict() (safetensors), then "
            "layer_parallel(model, ...) with the same arguments and load_state_dict"
        )

    def _get_name(self) -> str:
        return f"LayerParallel{self._name}"


@overload
def layer_parallel(
    model: nn.Module,
    levels: int = ...,
    coarsening: int | Sequence[int] = ...,
    forward_iterations: int = ...,
    backward_iterations: int = ...,
    relaxation: Relaxation = ...,
    example_inputs: Any = ...,
    *,
    cycle: Cycle = ...,
    tolerance: float = ...,
    warm_start: bool = ...,
    exact: bool = ...,
    leaf_modules: Iterable[type[nn.Module] | str] = ...,
    mesh: None = None,
) -> LayerParallel: ...


@overload
def layer_parallel(
    model: nn.Module,
    levels: int = ...,
    coarsening: int | Sequence[int] = ...,
    forward_iterations: int = ...,
    backward_iterations: int = ...,
    relaxation: Relaxation = ...,
    example_inputs: Any = ...,
    *,
    cycle: Cycle = ...,
    tolerance: float = ...,
    warm_start: bool = ...,
    exact: bool = ...,
    leaf_modules: Iterable[type[nn.Module] | str] = ...,
    mesh: DeviceMesh,
) -> LayerStage: ...


@typed_arguments(
    MultigridError,
    "model",
    "levels",
    "coarsening",
    "forward_iterations",
    "backward_iterations",
    "relaxation",
    "cycle",
    "leaf_modules",
)
def layer_parallel(
    model: nn.Module,
    levels: int = 2,
    coarsening: int | Sequence[int] = 4,
    forward_iterations: int = 2,
    backward_iterations: int = 1,
    relaxation: Relaxation = "F",
    example_inputs: Any = None,
    *,
    cycle: Cycle = "V",
    tolerance: float = 0.0,
    warm_start: bool = False,
    exact: bool = False,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    mesh: DeviceMesh | None = None,
) -> LayerParallel | LayerStage:
    r"""The same network, whose forward and backward passes are multigrid iterations in depth.

    With residual blocks :math:`\Phi_n(u) = u + f_n(u)` the values :math:`u_{n+1} = \Phi_n(u_n)` are not computed one
    after the other, but on levels: coarse steps :math:`u + c f_{jc}(u)` guess every c-th value, all intervals between
    are relaxed at once, and coarse steps again carry the corrections
    (:func:`~pararealize.multigrid.solver.solver.solve`). Gradients come from the same iteration on the transposed
    derivatives, backwards in time. A post-activation block :math:`\mathrm{relu}(u + f(u))` has the coarse step
    :math:`\mathrm{relu}(u + c f(u))`.

    As many iterations as there are coarse intervals give the serial network and its gradient; few iterations give
    something close to them that P processes compute faster, from P ≥ 4 on. Training with few iterations trains *that*
    network: watch ``net.history``, evaluate with ``net.serially()``, see
    :class:`~pararealize.multigrid.monitor.Monitor`.

    Args:
        model: any network with chains of residual blocks; it is left as found, and the result holds copies.
        levels: number of levels, at least 2, the layers themselves included.
        coarsening: c, for all levels or one for each but the coarsest.
        forward_iterations: the first is a coarse guess, each further one a correction.
        backward_iterations: the same for the adjoint.
        relaxation: ``"F"``, or ``"FCF"``: twice the work, two intervals an iteration.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; inferred where it can be.
        cycle: ``"V"`` or ``"F"``; they differ from three levels on.
        tolerance: the residual norm at which a solve ends early.
        warm_start: begin from the last step's states, as calls with gradients do; for one batch again and again.
        exact: run the network as it is.
        leaf_modules: classes or qualified names to keep as single nodes.
        mesh: take this rank's share alone, as :meth:`LayerParallel.distribute` does, which has a time-out besides.

    Returns:
        A module in the model's mode with its parameter names; with ``mesh``, a
        :class:`~pararealize.multigrid.distributed.stage.LayerStage`. Batch norms count a step once, dropout has one
        mask a step and layer.

    Raises:
        MultigridError: no chain of residual blocks, a coarsening larger than the longest one, too many levels, fewer
            than one iteration, an unknown relaxation or cycle, random numbers that torch's seeds do not reach.
        PararealizeError: as :func:`pararealize.capture` does.

    Source:
        Günther, Ruthotto, Schroder, Cyr, Gauger, "Layer-Parallel Training of Deep Residual Neural Networks",
        arXiv 1812.04352.

    Example:
        >>> import torch
        >>> from pararealize import layer_parallel
        >>> from pararealize.models import resnet56
        >>> net = layer_parallel(resnet56(), coarsening=3)
        >>> print(net.hierarchy)
        level 0: 27 steps, 11 intervals of 3, 3, 3, 1, 3, 3, 2, 1, 3, 3, 2
        level 1: 11 steps
        >>> net(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """
    settings = Settings(
        forward_iterations=forward_iterations,
        backward_iterations=backward_iterations,
        relaxation=relaxation,
        cycle=cycle,
        tolerance=tolerance,
        warm_start=warm_start,
        exact=exact,
    )
    settings.check()
    with ordinary_mode():
        captured = capture(model, example_inputs, leaf_modules=leaf_modules)
        check_parameter_hooks(model)
        layers = find_layers(captured)
        hierarchy = make_hierarchy(layers.fixed, levels, coarsening)
        root, _ = copy_model(model, captured.constants, _RESERVED)
        tree = bare_tree(root)  # which has the root's hooks
        original, guards = Original(root, tuple(captured.opaque)), captured.guards
        name, graph = type(model).__name__, whole_graph(captured)
        net = LayerParallel(tree, layers, hierarchy, graph, name, settings, guards=guards, original=original)
        check_replay(net, net._pieces.stem, net.rows, hierarchy, captured)
    return net if mesh is None else net.distribute(mesh)
