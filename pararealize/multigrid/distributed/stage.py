"""One rank's share of a distributed layer-parallel network: an ordinary module with a ``step`` of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pararealize.distributed.rank_setup import RankSetup
from pararealize.distributed.stage import Stage
from pararealize.multigrid.solver.convergence import Convergence
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.settings import Settings, SettingsAttributes

from .partition import LayerPartition
from .step import LayerStep

__all__ = ["LayerStage"]


class LayerStage(Stage, SettingsAttributes):
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
        warm_start: begin from the last step's states, for inputs of the same shapes; ``step`` alone does.
        exact: one layer after the other, from rank to rank.
        history: residual norms of the last steps, the same on all ranks.
        segments: the first and the last interval of this rank, from 1.
    """

    hierarchy: Hierarchy
    history: Convergence
    _layers: tuple[int, ...]
    _layer_step: LayerStep

    def __init__(self, setup: RankSetup, program: LayerStep, partition: LayerPartition) -> None:
        super().__init__(setup, program)
        self.__dict__.update(
            dataclasses.asdict(program.settings),
            hierarchy=partition.hierarchy,
            history=program.history,
            _layers=partition.layers(setup.rank),
            _layer_step=program,
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of this rank's layers, from 0."""
        return self._layers

    @property
    def receive_orders(self) -> list[list[tuple[str, int]]]:
        """For each kind of step that has been run, the values that this rank receives: name and sender, in order."""
        return [order.values for order in self._layer_step.receive_orders.values()]

    def forget(self) -> None:
        """Drop the states that a warm start would begin from; on all ranks."""
        self._layer_step.forget()

    def _call(self, call: str, inputs: Mapping[str, Any]) -> str:
        """The call with the settings as they are now, and with what it begins from."""
        settings = Settings.of(self)
        warm = settings.warm_start and call == "step"  # an inference has no part in it
        self._layer_step.settings = settings = dataclasses.replace(settings, warm_start=warm)
        settings.check()
        values = ", ".join(f"{name} = {value}" for name, value in dataclasses.asdict(settings).items())
        starts = self._layer_step.warm_starts(inputs)
        return f"{super()._call(call, inputs)} with {values}" + (
            f", from saved states {' and '.join(starts)}" if starts else ""
        )
