"""BlockChain, Fields, Costs, n -> Plan: where to cut, by which coarse kind and source, before anything is built.

Every fault of the arguments is found before any is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.bulk import bulk_of
from pararealize.analysis.cost import Costs, Split, plus
from pararealize.analysis.fields.field import Fields
from pararealize.analysis.space import Space
from pararealize.argument_types import typed_arguments
from pararealize.coarse.evidence_table import choose
from pararealize.coarse.kinds import Coarse, coarse_name
from pararealize.errors import CutError, DeviceError, PlanError
from pararealize.plan.plan import Plan
from pararealize.plan.simulation import simulate
from pararealize.plan.times import RATE
from pararealize.plan.transfer import Transfer

from .arguments import Faults, adapter_source, check_count, device_names, named_starts, whole_number
from .path_cuts import CutProblem, equal_cuts
from .prices import Prices
from .rows import PlanRequest, plan_of
from .step_cuts import StepProblem, cheapest_step

__all__ = ["plan_segments"]

FORBIDDEN = 1000  # times the network's own cost


@typed_arguments(PlanError, "n", "source", "coarse", cuts=CutError, devices=DeviceError)
def plan_segments(
    chain: BlockChain,
    fields: Fields,
    costs: Costs,
    n: int,
    *,
    coarse: Coarse = "paper",
    cuts: str | Sequence[str] = "cost",
    source: str | None = None,
    devices: Sequence[str | torch.device] | None = None,
    transfer: Transfer | None = None,
    rate: float = RATE,
) -> Plan:
    """Decide where to cut, what adapters and coarse blocks there are, and what it all costs.

    With ``cuts="cost"`` the cut has the smallest step ``t_n + t'_n`` of all, where ``s_j`` is the forward cost of
    segment j with its adapter (of the first, with the stem), ``c_j`` that of F^j, ``m_j`` that of the message in front
    of it, and ``'`` means backward::

        t_1 = s_1,    t_{j+1} = max(s_{j+1}, t_j + m_j) + c_j,    t'_{j+1} = max(s'_{j+1}, t'_j + m_j) + c'_j

    Messages are free unless ``transfer`` says what they take. It is exact for coarse blocks whose cost depends on their
    two spaces; ``"block"`` is judged by the commonest block between two stages, and a callable, whose cost is not known
    before it builds, by the correction alone. Where linear coarse blocks are summed over ranks, messages do not wait
    for one another as above: of the best cut by this recursion, the best for free messages and the best for free sums,
    the one with the shortest simulated step is taken, which need not be the best of all.

    Args:
        chain: the network's blocks.
        fields: their receptive fields, which say how many coarse units there are.
        costs: their costs. Where they are seconds, adapters and coarse blocks are measured too, at the same batch.
        n: the number of segments, from 1 to the number of blocks.
        coarse: ``"paper"``, ``"depthwise"``, ``"bottleneck"``, ``"linear"``, ``"block"``, ``"exact"``, a callable, or
            ``"auto"``: what learnt as well as the original on networks like it (``coarse/evidence_table.py``).
        cuts: ``"cost"``; ``"paper"``, equally many blocks in each stage; or names of blocks at which segments begin.
        source: what adapters read, ``"input"`` or ``"stem"``. When left out: with ``"auto"``, what the evidence is of;
            otherwise the input where it is floating-point, of as many axes as the blocks' values.
        devices: one a segment; fewer wrap round. Where the model is, when left out.
        transfer: what messages between segments take, at the example's batch.
        rate: operations a second, with which messages are compared where costs are counted.

    Raises:
        PlanError: n is out of range.
        CutError: the cuts are not names of blocks, or not n - 1 of them.
        SourceError: adapters cannot read from that source.
        DeviceError: a device is unknown or not there.
        CoarseError: there is no such coarse kind.
        FieldError: coarse units depend on the field of an operation that has no rule.
    """
    number = whole_number(n)
    n = n if number is None else number
    faults = Faults()
    kind = faults.collect(lambda: coarse_name(coarse)) or ""
    adapters_read = faults.collect(lambda: adapter_source(chain, source)) or "stem"
    places = faults.collect(lambda: device_names(chain, devices, n)) or ()
    faults.collect(lambda: check_count(chain, n))
    starts = faults.collect(lambda: named_starts(chain, cuts, n)) if isinstance(n, int) and n >= 1 else None
    faults.raise_all()
    notes = []
    if coarse == "auto":
        choice = choose(chain, n)
        coarse, notes = choice.kind, [f'"auto" is "{choice.kind}": {choice.why}']
        adapters_read = adapter_source(chain, source or (None if chain.stem_blocks else choice.source))
    prices = Prices(chain, fields, costs, n, adapters_read)
    boundaries = range(1, len(chain.blocks)) if source is None and adapters_read == "input" and n > 1 else ()
    if any(map(prices.why_no_adapter, boundaries)):
        prices = Prices(chain, fields, costs, n, "stem")
    search = _CutSearch(prices, coarse, transfer, rate)
    if starts is None:
        starts, note = search.starts(str(cuts))
        notes += [note] if note else []
    request = PlanRequest(
        coarse=kind,
        cuts=cuts if isinstance(cuts, str) else tuple(cuts),
        devices=places,
        notes=[*notes, *_notes(chain)] if n > 1 else (),
    )
    return plan_of(search.prices, coarse, starts, request)


def _notes(chain: BlockChain) -> Iterator[str]:
    """What one should know of a network's blocks."""
    if chain.packs:
        widest = max(chain.packs, key=lambda pack: len(pack.names))
        yield (
            f"blocks hand on {len(widest.names)} values, as one tensor that holds them side by side along axis "
            f"{widest.axis}, such as {widest}"
        )
    if bulk := bulk_of(chain):
        yield bulk


@dataclass(frozen=True, slots=True)
class _CutSearch:
    """Where to cut, with all that it depends on."""

    prices: Prices
    coarse: Coarse
    transfer: Transfer | None
    rate: float

    def starts(self, cuts: str) -> tuple[tuple[int, ...], str]:
        """The first block of each segment, and a note, which may be empty."""
        n, costs = self.prices.n, self.prices.costs
        if n == 1:
            return (0,), ""
        if cuts == "paper":
            return equal_cuts(self.prices.chain.stages, n)
        if self.transfer is None:
            return cheapest_step(self.problem(), n), ""
        candidates = [cheapest_step(self.problem(), n)]
        if self.coarse == "linear":
            free = replace(self, transfer=None)
            candidates += [cheapest_step(problem, n) for problem in (free.problem(), free.problem(summed=True))]
        work = "" if costs.unit == "seconds" else f", counted work at {self.rate:g} operations a second"
        return min(candidates, key=self._simulated_step), f"cut for messages of {self.transfer}{work}"

    def _simulated_step(self, starts: tuple[int, ...]) -> float:
        """The step of a cut, with messages and with sums of linear coarse blocks."""
        assert self.transfer is not None
        request = PlanRequest(coarse="", cuts="cost", devices=("",) * self.prices.n)
        plan = plan_of(self.prices, self.coarse, starts, request)
        latency, bandwidth = self.transfer.latency, self.transfer.bandwidth
        return simulate(plan, latency=latency, bandwidth=bandwidth, reduce_linear=True, rate=self.rate).step

    def _message(self, space: Space) -> Split:
        """What sending a batch of values takes, in the unit of costs; the same both ways."""
        if self.transfer is None:
            return 0, 0
        batch = max(self.prices.chain.capture.batch, 1)
        seconds = self.transfer.seconds(space.numel * space.torch_dtype.itemsize * batch)
        cost = seconds * (1 if self.prices.costs.unit == "seconds" else self.rate / batch)
        return cost, cost

    def problem(self, *, summed: bool = False) -> StepProblem:
        """The costs as functions of the cut.

        What an adapter, a coarse block or a message costs depends on spaces alone, and spaces change at few blocks. So
        boundaries are of as many *kinds* as there are changes of space before them, plus one: boundaries of one kind
        share a row of every table, and the search is linear in blocks rather than quadratic. (Two kinds may be one
        space, as where a map shrinks and grows again.)

        With ``summed``, coarse blocks from a space to itself are free: as identities are, summed over infinitely many
        ranks at once. The best cut is then the one whose slowest segments are the fastest.
        """
        prices, costs, chain = self.prices, self.prices.costs, self.prices.chain
        kinds, spaces, edges = _boundaries(chain.blocks)
        stem = costs.split(costs.stem) if chain.stem.nodes else (0, 0)
        wait = plus(stem, self._message(spaces[0])) if prices.source == "stem" else (0, 0)
        work = list(map(costs.split, costs.blocks))
        # the first boundary of each kind stands for all; none is before block 0 or behind the last one
        fronts = [min(max(first, 1), len(chain.blocks) - 1) for first, _ in edges]
        never = FORBIDDEN * costs.total  # where no adapter leads to: no cut falls there, if another can be made
        adapters = [
            (never, never) if prices.why_no_adapter(first) else plus(wait, prices.adapter(first).cost)
            for first in fronts
        ]
        boundary_kinds = range(len(spaces))
        coarse = [
            [
                prices.between(self.coarse, edges[a][0], edges[b][1]) if a + summed <= b else (0, 0)
                for b in boundary_kinds
            ]
            for a in boundary_kinds
        ]
        forward, backward = (
            CutProblem(
                work=[cost[way] for cost in work],
                kinds=kinds,
                adapter=[cost[way] for cost in adapters],
                coarse=[[cost[way] for cost in row] for row in coarse],
                message=[self._message(space)[way] for space in spaces],
                first=stem[way],
                share=1 if self.coarse == "exact" else 0,
            )
            for way in (0, 1)
        )
        return StepProblem(forward=forward, backward=backward)


def _boundaries(blocks: Sequence[Block]) -> tuple[list[int], list[Space], list[list[int]]]:
    """The kind of every boundary; of every kind, its space and its (first, last) boundary."""
    kinds, spaces, edges = [0], [blocks[0].x], [[0, 0]]
    for i, block in enumerate(blocks, 1):
        if block.y != block.x:
            spaces.append(block.y)
            edges.append([i, i])
        edges[-1][1] = i
        kinds.append(len(spaces) - 1)
    return kinds, spaces, edges
