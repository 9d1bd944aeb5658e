"""NetworkCosts, devices, batch -> layer-parallel multigrid: the best number of ranks, and copies beside them."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

from pararealize.errors import MultigridError
from pararealize.multigrid.simulation import simulate_multigrid
from pararealize.multigrid.solver.hierarchy import Hierarchy, make_hierarchy
from pararealize.multigrid.solver.layers import select_blocks
from pararealize.multigrid.times import LayerTimes

from .network_costs import NetworkCosts
from .replicas import copies_of
from .strategy import Strategy

__all__ = ["MultigridLayers"]

COARSENING = 4
MOST_RANKS = 64  # that are simulated: more have fewer than a handful of layers each


class _Structure(NamedTuple):
    """Which blocks are layers: for each layer its (first, behind the last) block, and whether it is a transition."""

    spans: tuple[tuple[int, int], ...]
    hierarchy: Hierarchy


@dataclasses.dataclass(frozen=True)
class MultigridLayers:
    """Layer-parallel steps of one network.

    Attributes:
        costs: of the network.
    """

    costs: NetworkCosts

    @cached_property
    def structure(self) -> _Structure | str:
        """The layers, or why there are none."""
        chain = self.costs.chain
        try:
            names = {block.name for block in select_blocks(chain.capture, least=2).blocks}
        except MultigridError as error:
            return str(error)
        steps = [block.name in names for block in chain.blocks]
        if sum(steps) < len(names) or not any(steps):
            return "its residual blocks are not the blocks of its chain"
        begin, end = steps.index(True), len(steps) - steps[::-1].index(True)
        spans, fixed, i = list[tuple[int, int]](), list[bool](), begin
        while i < end:
            stop = i + 1
            while not steps[i] and not steps[stop]:
                stop += 1
            spans.append((i, stop))
            fixed.append(not steps[i])
            i = stop
        try:
            return _Structure(tuple(spans), make_hierarchy(fixed, coarsening=COARSENING))
        except MultigridError as error:
            return str(error)

    def fastest(self, devices: int, batch: int) -> Strategy | None:
        """The fastest over numbers of ranks; nothing where the network has no layers of the sort."""
        if isinstance(self.structure, str):
            return None
        most = min(devices, MOST_RANKS, len(self.structure.hierarchy.levels[0].intervals))
        numbers = [2**k for k in range(1, most.bit_length())]
        found = [self.strategy(self.structure, ranks, copies_of(batch, devices // ranks), batch) for ranks in numbers]
        return min(found, key=lambda strategy: (not strategy.fits, strategy.step), default=None)

    def strategy(self, structure: _Structure, ranks: int, copies: int, batch: int) -> Strategy:
        """One number of ranks."""
        costs, share = self.costs, batch // copies
        parts, spans = costs.parts(share), structure.spans
        begin, end = spans[0][0], spans[-1][1]

        def of(first: int, stop: int) -> tuple[float, float]:
            return sum(part[0] for part in parts[first:stop]), sum(part[1] for part in parts[first:stop])

        layers = [of(*span) for span in spans]
        times = LayerTimes(
            layers=tuple((forward, backward, backward / 2) for forward, backward in layers),
            stem=of(0, begin),
            head=of(end, len(parts)),
        )
        size = max(costs.interfaces[begin:end]) * share
        timeline = simulate_multigrid(structure.hierarchy, times, ranks, transfer=costs.link.message, size=size)
        owners = structure.hierarchy.owners(ranks)
        memory, exposed = 0.0, 0.0
        for rank in range(ranks):
            own = [i for owner, span in zip(owners, spans, strict=True) if owner == rank for i in range(*span)]
            own = [*range(begin * (rank == 0)), *own, *range(end, len(parts) * (rank == ranks - 1))]
            memory = max(memory, sum(costs.memory(i, i + 1, share) for i in own))
            backward = [parts[i][1] for i in own]
            exposed = max(exposed, costs.averaging(backward, [costs.gradients[i] for i in own], copies))
        messages = sum(action.kind == "transfer" and action.rank == 0 for action in timeline.actions)
        return Strategy(
            name="layer-parallel multigrid",
            detail=f"{ranks} ranks, c = {COARSENING}, 2/1 iterations" + (f", {copies} copies" if copies > 1 else ""),
            devices=ranks * copies,
            exact=False,
            step=timeline.step + costs.link.host.step + exposed,
            work=costs.step(batch),
            memory=memory,
            sent=messages * size,
            fits=memory <= costs.profile.memory,
            n=ranks,
            copies=copies,
        )
