"""BlockChain, fields, Costs, n -> Plan: the decisions, all made here and before anything is built.

Every fault of the arguments is found before any is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pararealize.analysis.cost import BlockCost, Costs
from pararealize.coarse.adapter import describe_adapter
from pararealize.coarse.evidence_table import choose
from pararealize.coarse.kinds import Coarse, coarse_name, kind_for
from pararealize.coarse.spec import AdapterPlan, CoarsePlan
from pararealize.plan.plan import PartPlan, Plan, SegmentPlan, fingerprint
from pararealize.plan.simulation import simulate
from pararealize.plan.times import RATE
from pararealize.plan.transfer import Transfer

from .arguments import Faults, adapter_source, check_count, device_names, named_starts
from .cuts import CutProblem, equal_cuts
from .prices import Prices, Split, plus
from .step_cuts import StepProblem, cheapest_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pararealize.analysis.blocks import Block, BlockChain, Space
    from pararealize.analysis.fields.field import Fields

__all__ = ["plan_segments"]


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
    found = Faults()
    kind = found.of(lambda: coarse_name(coarse)) or ""
    reads = found.of(lambda: adapter_source(chain, source)) or "stem"
    places = found.of(lambda: device_names(chain, devices, n)) or ()
    found.of(lambda: check_count(chain, n))
    named = found.of(lambda: named_starts(chain, cuts, n)) if isinstance(n, int) and n >= 1 else None
    found.stop()
    why = []
    if coarse == "auto":
        choice = choose(chain, n)
        coarse, why = choice.kind, [f'"auto" is "{choice.kind}": {choice.why}']
        reads = adapter_source(chain, source or (None if chain.stem_blocks else choice.source))
    planner = _Planner(chain, costs, n, coarse, Prices(chain, fields, costs, n, reads), transfer, rate)
    starts, notes = (named, []) if named is not None else planner.starts(str(cuts))
    notes = [*why, *notes] if n > 1 else notes
    return planner.plan(starts, places, kind, cuts if isinstance(cuts, str) else tuple(cuts), notes)


@dataclass(frozen=True, slots=True)
class _Planner:
    """What is decided, with all that the decisions depend on."""

    chain: BlockChain
    costs: Costs
    n: int
    coarse: Coarse
    prices: Prices
    transfer: Transfer | None
    rate: float

    def starts(self, cuts: str) -> tuple[tuple[int, ...], list[str]]:
        """The first block of each segment, and notes."""
        if self.n == 1:
            return (0,), []
        if cuts == "paper":
            starts, note = equal_cuts(self.chain.stages, self.n)
            return starts, [note] if note else []
        if self.transfer is None:
            return cheapest_step(self.problem(), self.n), []
        found = [cheapest_step(self.problem(), self.n)]
        if self.coarse == "linear":
            free = replace(self, transfer=None)
            found += [cheapest_step(problem, self.n) for problem in (free.problem(), free.problem(summed=True))]
        work = "" if self.costs.unit == "seconds" else f", counted work at {self.rate:g} operations a second"
        return min(found, key=self._simulated), [f"cut for messages of {self.transfer}{work}"]

    def _simulated(self, starts: tuple[int, ...]) -> float:
        """The step of a cut, with messages and with sums of linear coarse blocks."""
        assert self.transfer is not None
        plan = self.plan(starts, ("",) * self.n, "", "cost", [])
        latency, bandwidth = self.transfer.latency, self.transfer.bandwidth
        return simulate(plan, latency=latency, bandwidth=bandwidth, reduce_linear=True, rate=self.rate).step

    def _message(self, space: Space) -> Split:
        """What sending a batch of values takes, in the unit of costs; the same both ways."""
        if self.transfer is None:
            return 0, 0
        batch = max(self.chain.capture.batch, 1)
        taken = self.transfer.seconds(space.numel * space.torch_dtype.itemsize * batch)
        taken *= 1 if self.costs.unit == "seconds" else self.rate / batch
        return taken, taken

    def problem(self, *, summed: bool = False) -> StepProblem:
        """The costs as functions of the cut, for boundaries by the number of changes of space before them.

        With ``summed``, coarse blocks from a space to itself are free: as identities are, summed over infinitely many
        ranks at once. The best cut is then the one whose slowest segments are the fastest.
        """
        blocks = self.chain.blocks
        kinds, spaces, edges = [0], [blocks[0].x], [[0, 0]]
        for i, block in enumerate(blocks, 1):
            if block.y != block.x:
                spaces.append(block.y)
                edges.append([i, i])
            edges[-1][1] = i
            kinds.append(len(spaces) - 1)
        stem = self.costs.split(self.costs.stem) if self.chain.stem.nodes else (0, 0)
        wait = plus(stem, self._message(spaces[0])) if self.prices.source == "stem" else (0, 0)
        work = list(map(self.costs.split, self.costs.blocks))
        adapters = [plus(wait, self.prices.adapter(space).cost) for space in spaces]
        every = range(len(spaces))
        coarse = [
            [self.prices.between(self.coarse, edges[a][0], edges[b][1]) if a + summed <= b else (0, 0) for b in every]
            for a in every
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

    # Rows -----------------------------------------------------------------------------------------------------------

    def plan(
        self,
        starts: tuple[int, ...],
        devices: tuple[str, ...],
        coarse: str,
        cuts: str | tuple[str, ...],
        notes: list[str],
    ) -> Plan:
        """All rows for given starts."""
        ends = [*starts[1:], len(self.chain.blocks)]
        spans = [(a, b - 1) for a, b in zip(starts, ends, strict=True)]
        segments = tuple(self.segment(j, *span, devices[j - 1]) for j, span in enumerate(spans, 1))
        coarse_blocks = tuple(self.coarse_block(j, *span) for j, span in enumerate(spans[1:], 1))
        notes = [*notes, *dict.fromkeys(row.note for row in coarse_blocks if row.note), *self.costs.notes]
        if any(row.kind == "custom" for row in coarse_blocks):
            notes.append(f"coarse blocks of {coarse} are not counted: their cost is not known before they are built")
        plan = Plan(
            model=type(self.chain.capture.model).__name__,
            fingerprint=fingerprint(self.chain),
            n=self.n,
            coarse=coarse,
            cuts=cuts,
            source="input" if self.prices.source == "input" else "stem",
            batch=self.chain.capture.batch,
            unit=self.costs.unit,
            stem=self.part(self.chain.stem, self.costs.stem),
            segments=segments,
            adapters=tuple(self.adapter(j, chosen.x) for j, chosen in enumerate(segments[1:], 2)),
            coarse_blocks=coarse_blocks,
            head=self.part(self.chain.head, self.costs.head),
            notes=tuple(notes),
            stem_blocks=self.chain.stem_blocks,
        )
        if plan.n == 1 or plan.virtual_speedup >= 1:
            return plan
        warning = (
            f"this plan does not pay: its longest path is {plan.critical_path / plan.serial:.2f} times the "
            "original's step; "
            'take fewer segments or a cheaper coarse kind, such as "linear"'
        )
        return replace(plan, notes=(*plan.notes, warning))

    def part(self, block: Block, cost: BlockCost) -> PartPlan:
        forward, backward = self.costs.split(cost) if block.nodes else (0, 0)
        return PartPlan(
            parameters=block.parameters,
            flops_forward=cost.flops_forward,
            flops_backward=cost.flops_backward,
            cost_forward=forward,
            cost_backward=backward,
        )

    def segment(self, j: int, first: int, last: int, device: str) -> SegmentPlan:
        blocks, costs = self.chain.blocks[first : last + 1], self.costs.blocks[first : last + 1]
        forward, backward = self.costs.split_step(first, last)
        return SegmentPlan(
            j=j,
            first=first,
            last=last,
            first_block=blocks[0].name,
            last_block=blocks[-1].name,
            blocks=len(blocks),
            x=blocks[0].x,
            y=blocks[-1].y,
            parameters=sum(block.parameters for block in blocks),
            flops_forward=sum(cost.flops_forward for cost in costs),
            flops_backward=sum(cost.flops_backward for cost in costs),
            cost_forward=forward,
            cost_backward=backward,
            device=device,
        )

    def adapter(self, j: int, target: Space) -> AdapterPlan:
        prices = self.prices
        price = prices.adapter(target)
        return AdapterPlan(
            j=j,
            source="input" if prices.source == "input" else "stem",
            x=prices.origin,
            y=target,
            parameters=price.parameters,
            flops_forward=price.flops[0],
            flops_backward=price.flops[1],
            cost_forward=price.cost[0],
            cost_backward=price.cost[1],
            recipe=describe_adapter(prices.origin, target, from_stem=prices.source == "stem"),
        )

    def coarse_block(self, j: int, first: int, last: int) -> CoarsePlan:
        """F^j, which stands for segment j + 1: blocks ``first`` to ``last``."""
        x, y = self.chain.blocks[first].x, self.chain.blocks[last].y
        kind, note = kind_for(self.coarse, x, y)
        units, kernel = self.prices.units(kind), self.prices.kernel(kind, first, last)
        price = self.prices.coarse_block(kind, units, kernel, first, last)
        return CoarsePlan(
            j=j,
            kind=kind,
            units=units,
            kernel=kernel,
            x=x,
            y=y,
            parameters=price.parameters,
            flops_forward=price.flops[0],
            flops_backward=price.flops[1],
            cost_forward=price.cost[0],
            cost_backward=price.cost[1],
            note=note,
        )
