"""LayerParallel, DeviceMesh -> LayerStage: each rank with its own layers, the ranks agreed before the first message.

Groups        of the ranks of one network, of its copies      groups.py
agree         settings, weights, versions                     agree.py
LayerPartitionwho owns what, what crosses                     layer_layout.py
share_of      a rank's own modules                            materialise.py
Wire          messages                                        wire.py
Ties          parameters that other ranks hold too            ties.py
LayerStage    a module with a step                            here, layer_step.py
"""

from __future__ import annotations

import dataclasses
import platform
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.distributed.consistency import FAULT, agree, agree_on_weights
from pararealize.distributed.distribution import WHAT, refuse_norms, watch_over
from pararealize.distributed.materialise import Undefined, share_of
from pararealize.distributed.p2p import Kinds, Wire
from pararealize.distributed.process_groups import Groups
from pararealize.distributed.stage import Stage
from pararealize.distributed.tied import Ties, ties_of
from pararealize.errors import DistributedError
from pararealize.multigrid.solver.convergence import Convergence
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.propagators import TimeStep
from pararealize.multigrid.solver.settings import Cycle, Relaxation, Settings
from pararealize.plan.parts import Part

from .partition import LayeredNetwork, LayerPartition
from .step import LayerPass, OwnLayers, backward, forward, settle

if TYPE_CHECKING:
    from pararealize.distributed.rank import Own

__all__ = ["LayerStage", "distribute_layers"]


class LayerStage(Stage):
    """The layers of one rank, with the weights of these alone; made by ``layer_parallel(model, ..., mesh=mesh)``.

    It is used as :class:`Stage` is: ``step`` for a training step, a call for the output on the last rank. Settings may
    be changed between steps, on all ranks alike. Dropout of layers has the masks that one process would draw from the
    first rank's generator; stem and head draw from that of their own rank.

    Attributes:
        hierarchy: the levels.
        forward_iterations: k of the forward solve.
        backward_iterations: k of the adjoint solve.
        relaxation: ``"F"`` or ``"FCF"``.
        cycle: ``"V"`` or ``"F"``.
        tolerance: a solve ends early where its residual norm is at most this; then the ranks meet in each iteration.
        warm_start: begin from the last step's states, for inputs of the same shapes.
        exact: one layer after the other, from rank to rank.
        history: residual norms of the last steps, the same on all ranks.
        segments: the first and the last interval of this rank, from 1.
    """

    _held: OwnLayers
    hierarchy: Hierarchy
    history: Convergence
    forward_iterations: int
    backward_iterations: int
    relaxation: Relaxation
    cycle: Cycle
    tolerance: float
    warm_start: bool
    exact: bool

    def __init__(
        self, tree: nn.Module, own: OwnLayers, ties: Ties, described: str, mesh: DeviceMesh, settings: Settings
    ) -> None:
        super().__init__(tree, cast("Own", own), ties, described, mesh)
        self.__dict__["_held"] = own
        self.__dict__.update(dataclasses.asdict(settings), hierarchy=own.layout.hierarchy, history=Convergence())

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of this rank's layers, from 0."""
        return self._held.layout.layers(self.rank)

    def part_modules(self) -> dict[Part, nn.Module]:
        """The parts of this rank and their modules; that of a layer is the map f that the solver calls."""
        modules = super().part_modules()
        return {part: self._held.rows[part.j].f if part.kind == "layer" else m for part, m in modules.items()}

    def forget(self) -> None:
        """Drop the states that a warm start would begin from; on all ranks."""
        self._held.states.clear()

    def _kinds(self, inputs: Mapping[str, Any], call: str) -> Kinds:
        """What messages look like; ranks whose settings differ are found out here."""
        settings = Settings.of(self)
        settings.check()
        values = ", ".join(f"{name} = {value}" for name, value in dataclasses.asdict(settings).items())
        return super()._kinds(inputs, f"{call} with {values}")

    def _forward(self, inputs: Mapping[str, Any], kinds: Kinds, *, graph: bool) -> LayerPass:
        run = forward(self._held, inputs, kinds, Settings.of(self), graph=graph)
        if not graph:
            settle(run)
            self._remember(run)
        return run

    def _backward(self, run: LayerPass, loss: torch.Tensor | None, share: Callable[[], None]) -> None:
        backward(self._held, run, loss, share)
        self._remember(run)

    def _remember(self, run: LayerPass) -> None:
        if not run.settings.exact:
            self.history.append(run.norms)


def distribute_layers(
    net: LayeredNetwork, mesh: DeviceMesh, *, timeout: timedelta | float = 600.0, bucket_bytes: int = 25 << 20
) -> LayerStage:
    """What :meth:`LayerParallel.distribute` does."""
    limit = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
    groups = Groups.of(mesh, limit)
    settings = Settings.of(net)
    facts: dict[str, Any] = {"torch": torch.__version__, "Python": platform.python_version()}
    layout = None
    try:
        if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
            raise DistributedError(
                "the network is on the meta device; give it values first: net.to_empty(...), and load"
            )
        layout = LayerPartition.of(net, dist.get_world_size(groups.parareal))
        refuse_norms(net, layout)
        facts |= {"the layers": str(net.structure), "the levels": str(net.hierarchy), "the settings": str(settings)}
        facts |= {"mode": "train" if net.training else "eval", "bucket_bytes": bucket_bytes}
        facts["the trained parameters"] = sum(parameter.requires_grad for parameter in net.parameters())
    except DistributedError as fault:
        facts[FAULT] = str(fault)
    agree(groups.everyone, facts, what=WHAT, remedy="start every rank from the same program", timeout=limit)
    assert layout is not None
    agree_on_weights(groups.control, net, what=WHAT, timeout=limit)
    names = layout.names(groups.rank)
    share = share_of(net, names, groups.device, {name: name for name in names})
    describe = _describer(net, layout)
    watch = watch_over(mesh, groups, describe)
    wire = Wire(groups.parareal, groups.control, groups.device, limit, describe, watch)
    rows = {n: TimeStep(share.tree, net.structure.layers[n]) for n in layout.layers(groups.rank)}
    own = OwnLayers(
        layout=layout,
        rank=groups.rank,
        parts=share.parts,
        rows=rows,
        head_reads=net.structure.head_reads,
        wire=wire,
        watch=watch,
    )
    ties = ties_of(net, own, share.tree, groups, Undefined({}), bucket_bytes)
    described = f"{net._get_name()}: {describe(groups.rank)} of {layout.ranks}"  # type: ignore[no-untyped-call]
    stage = LayerStage(share.tree, own, ties, described, mesh, settings)
    weakref.finalize(stage, watch.close).atexit = False  # at exit, the watch itself looks at how the script ended
    return stage


def _describer(net: LayeredNetwork, layout: LayerPartition) -> Callable[[int], str]:
    """Ranks with their layers, for errors."""

    def describe(rank: int) -> str:
        own = layout.layers(rank)
        if not own:
            return f"{rank} (no layers)"
        first, last = net.structure.layers[own[0]].name, net.structure.layers[own[-1]].name
        return f"{rank} (layers {own[0]} to {own[-1]}, {first} to {last})"

    names = [describe(rank) for rank in range(layout.ranks)]
    return names.__getitem__
