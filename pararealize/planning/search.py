"""BlockChain, Fields, Costs, n -> Plan: where to cut, by which coarse kind and source, before anything is built.

Every fault of the arguments is found before any is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.bulk import bulk_of
from pararealize.analysis.cost import Costs, Split, plus
from pararealize.analysis.fields.field import Fields
from pararealize.analysis.space import Space
from pararealize.argument_types import typed_arguments
from pararealize.coarse.evidence_table import choose
from pararealize.coarse.kinds import Coarse, coarse_name, is_summed
from pararealize.errors import CutError, DeviceError, PlanError
from pararealize.plan.plan import Plan
from pararealize.plan.times import RATE
from pararealize.plan.transfer import Transfer
from pararealize.table import quantity

from .arguments import Faults, adapter_source, check_count, device_names, named_starts, whole_number
from .path_cuts import CutProblem, equal_cuts
from .prices import Prices
from .rows import PlanRequest, plan_of, planned_cut
from .step_cuts import StepProblem, cheapest_step
from .window_arguments import (
    Sequential,
    Windows,
    WindowSpan,
    check_segments,
    named_windows,
    sequential_blocks,
    sequential_front,
    window_spans,
    windows_request,
)

__all__ = ["plan_segments"]

FORBIDDEN = 1000  # times the network's own cost
FREE = 1.05  # how much longer than the shortest a step may be where windows are chosen
MOST_TRIALS = 16  # numbers of windows that are looked at


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
    windows: Windows = 1,
    sequential: Sequential = 0,
    devices: Sequence[str | torch.device] | None = None,
    transfer: Transfer | None = None,
    rate: float = RATE,
    exact: bool = True,
) -> Plan:
    """Decide where to cut, what adapters and coarse blocks there are, and what it all costs.

    With ``cuts="cost"`` the cut of a window has the smallest step ``t_n + t'_n`` of all, where ``s_j`` is the forward
    cost of segment j with its adapter (of the first, with the stem), ``c_j`` that of F^j, ``m_j`` that of the message
    in front of it, and ``'`` means backward::

        t_1 = s_1,    t_{j+1} = max(s_{j+1}, t_j + m_j) + c_j,    t'_{j+1} = max(s'_{j+1}, t'_j + m_j) + c'_j

    Messages are free unless ``transfer`` says what they take. It is exact for coarse blocks whose cost depends on their
    two spaces; ``"block"`` is judged by the commonest block between two stages, and a callable, whose cost is not known
    before it builds, by the correction alone. Where linear coarse blocks are summed over ranks, messages do not wait
    for one another as above: of the best cut by this recursion, the best for free messages and the best for free sums,
    the one with the shortest simulated step is taken, which need not be the best of all.

    Where windows begin is decided before, by what their blocks cost (``window_cuts.py``). ``windows="auto"`` takes as
    many as there can be while the step, messages included, stays within 5% of the shortest.

    Args:
        chain: the network's blocks.
        fields: their receptive fields, which say how many coarse units there are.
        costs: their costs. Where they are seconds, adapters and coarse blocks are measured too, at the same batch.
        n: the number of segments of a window, from 1 to the number of blocks; a window with fewer blocks has fewer.
        coarse: ``"paper"``, ``"depthwise"``, ``"bottleneck"``, ``"linear"``, ``"block"``, ``"exact"``, a callable, or
            ``"auto"``: what learnt as well as the original on networks like it (``coarse/evidence_table.py``).
        cuts: ``"cost"``; ``"paper"``, equally many blocks in each stage; or names of blocks at which segments begin.
        source: what adapters of the first window read, ``"input"`` or ``"stem"``. When left out: with several windows,
            the stem; with ``"auto"``, what the evidence is of; otherwise the input where it is floating-point, of as
            many axes as the blocks' values.
        windows: how many windows, 1 for the paper's network and as many as blocks for the original; the names of the
            blocks at which they begin; or ``"auto"``.
        sequential: how many of the first blocks, or the names of those, that run as in the original; or ``"auto"``: the
            smallest share of first blocks with which networks like it learnt as well as the original.
        devices: one for each segment of a window; fewer wrap round. Where the model is, when left out.
        transfer: what messages between segments take, at the example's batch.
        rate: operations a second, with which messages are compared where costs are counted.
        exact: ``False`` for the best cut of summed costs, moved boundary by boundary, and not the best of all: where
            many plans are compared.

    Raises:
        PlanError: n or the number of windows is out of range.
        CutError: the cuts are not names of blocks, or not n - 1 of them.
        SourceError: adapters cannot read from that source.
        DeviceError: a device is unknown or not there.
        CoarseError: there is no such coarse kind.
        FieldError: coarse units depend on the field of an operation that has no rule.
    """
    number = whole_number(n)
    n = n if number is None else number
    faults, notes = Faults(), list[str]()
    if sequential == "auto":
        sequential = 0
        if number is not None and number > 1:
            sequential, note = sequential_front(chain, number, windows, cuts)
            notes.append(note)
    kind = faults.collect(lambda: coarse_name(coarse)) or ""
    still = faults.collect(lambda: sequential_blocks(chain, sequential)) or frozenset()
    adapters_read = faults.collect(lambda: adapter_source(chain, source, sequential=0 in still)) or "stem"
    places = faults.collect(lambda: device_names(chain, devices, n)) or ()
    faults.collect(lambda: check_count(chain, n))
    wanted = faults.collect(lambda: windows_request(chain, windows, still))
    names = faults.collect(lambda: named_starts(chain, cuts))
    faults.raise_all()
    if coarse == "auto":
        front = next(i for i in range(len(chain.blocks) + 1) if i not in still)
        choice = choose(chain, n, sequential=front)
        coarse, notes = choice.kind, [f'"auto" is "{choice.kind}": {choice.why}', *notes]
        adapters_read = adapter_source(chain, source or (None if front else choice.source), sequential=front > 0)
    request = PlanRequest(
        coarse=kind,
        cuts=cuts if isinstance(cuts, str) else tuple(cuts),
        devices=places,
        notes=[*notes, *_notes(chain)] if n > 1 else (),
        transfer=transfer,
        rate=rate,
    )

    def plan_with(number: int | tuple[int, ...]) -> Plan:
        spans = window_spans(chain, costs, n, number, still)
        check_segments(chain, n, spans, windows)
        several = len(spans) > 1
        prices = Prices(chain, fields, costs, n, "stem" if several and source is None else adapters_read, several)
        if _needs_stem(prices, spans[0], may_choose=source is None):
            prices = replace(prices, source="stem")
        search = _CutSearch(prices, coarse, transfer, rate, exact)
        if names is None:
            starts, note = search.windows(str(cuts), spans)
        else:
            starts, note = named_windows(chain, names, spans, n), ""
        return plan_of(
            prices, coarse, starts, replace(request, notes=[*request.notes, note] if note else request.notes)
        )

    if wanted is not None:
        return plan_with(wanted)
    return _most_windows(plan_with, chain, still, transfer)


def _needs_stem(prices: Prices, window: WindowSpan, *, may_choose: bool) -> bool:
    """Whether adapters cannot read the input: the first window has none, or one cannot be built, where that is open."""
    if window.blocks == 1 or window.sequential:
        return True
    places = range(1, window.stop) if prices.n > 1 else ()
    return may_choose and prices.source == "input" and any(map(prices.why_no_adapter, places))


def _most_windows(
    plan_with: Callable[[int], Plan], chain: BlockChain, sequential: Collection[int], transfer: Transfer | None
) -> Plan:
    """The plan with the most windows among those whose steps are about as short as the shortest."""
    blocks = len(chain.blocks) - len(sequential)
    numbers = sorted({max(1, blocks // part) for part in range(1, blocks + 1)})
    if len(numbers) > MOST_TRIALS:
        numbers = sorted({numbers[round(i * (len(numbers) - 1) / (MOST_TRIALS - 1))] for i in range(MOST_TRIALS)})

    plans = {number: plan_with(number) for number in numbers}
    steps = {number: plan.step for number, plan in plans.items()}
    number = max(number for number, step in steps.items() if step <= FREE * min(steps.values()))
    links = "free messages" if transfer is None else f"messages of {transfer}"
    plan, runs = plans[number], sum(i - 1 not in sequential for i in sequential)
    beside = f" beside {runs} of sequential blocks" if runs else ""
    note = (
        f'"auto" is {quantity(len(plan.windows) - runs, "window")}{beside}, the most whose step is within '
        f"{FREE - 1:.0%} of the shortest with {links}"
    )
    return replace(plan, notes=(note, *plan.notes))


def _notes(chain: BlockChain) -> Iterator[str]:
    """What one should know of a network's blocks."""
    if chain.packs:
        widest = max(chain.packs, key=lambda pack: len(pack.names))
        yield (
            f"blocks hand on {len(widest.names)} values, as one tensor that holds them side by side along axis "
            f"{widest.axis}, such as {widest}"
        )
    if bulk := chain.once("bulk", partial(bulk_of, chain)):
        yield bulk


@dataclass(frozen=True, slots=True)
class _CutSearch:
    """Where to cut windows into segments, with all that it depends on."""

    prices: Prices
    coarse: Coarse
    transfer: Transfer | None
    rate: float
    exact: bool = True

    def windows(self, cuts: str, spans: Sequence[WindowSpan]) -> tuple[list[tuple[int, ...]], str]:
        """The first block of each segment, window by window, and a note, which may be empty."""
        if all(self._segments(span) == 1 for span in spans):
            return [(span.first,) for span in spans], ""
        if cuts == "paper":
            pairs = [self._equal(span) for span in spans]
            return [starts for starts, _ in pairs], "; ".join(dict.fromkeys(note for _, note in pairs if note))
        if self.transfer is None:
            return [self._cheapest(span) for span in spans], ""
        candidates = [[self._cheapest(span) for span in spans]]
        if is_summed(self.coarse):
            free = replace(self, transfer=None)
            candidates += [[free._cheapest(span, summed=summed) for span in spans] for summed in (False, True)]
        costs = self.prices.costs
        work = "" if costs.unit == "seconds" else f", counted work at {self.rate:g} operations a second"
        different = [list(cut) for cut in dict.fromkeys(map(tuple, candidates))]
        best = min(different, key=self._simulated_step) if len(different) > 1 else different[0]
        return best, f"cut for messages of {self.transfer}{work}"

    def _segments(self, span: WindowSpan) -> int:
        """How many segments a window has."""
        return 1 if span.sequential else min(self.prices.n, span.blocks)

    def _cheapest(self, span: WindowSpan, *, summed: bool = False) -> tuple[int, ...]:
        n = self._segments(span)
        starts = cheapest_step(self.problem(span, summed=summed), n, exact=self.exact) if n > 1 else (0,)
        return tuple(span.first + start for start in starts)

    def _equal(self, span: WindowSpan) -> tuple[tuple[int, ...], str]:
        n = self._segments(span)
        stages = [(max(first, span.first), min(last, span.stop - 1)) for first, last in self.prices.chain.stages]
        return equal_cuts([(a, b) for a, b in stages if a <= b], n) if n > 1 else ((span.first,), "")

    def _simulated_step(self, windows: Sequence[Sequence[int]]) -> float:
        """The step of a cut, with messages and with sums of linear coarse blocks."""
        devices = ("",) * self.prices.n
        request = PlanRequest(coarse="", cuts="cost", devices=devices, transfer=self.transfer, rate=self.rate)
        return planned_cut(self.prices, self.coarse, windows, request).step

    def _message(self, space: Space) -> Split:
        """What sending a batch of values takes, in the unit of costs; the same both ways."""
        if self.transfer is None:
            return 0, 0
        batch = max(self.prices.chain.capture.batch, 1)
        seconds = self.transfer.seconds(space.numel * space.torch_dtype.itemsize * batch)
        cost = seconds * (1 if self.prices.costs.unit == "seconds" else self.rate / batch)
        return cost, cost

    def problem(self, span: WindowSpan, *, summed: bool = False) -> StepProblem:
        """The costs of one window as functions of its cut; boundaries are counted from its first block.

        What an adapter, a coarse block or a message costs depends on spaces alone, and spaces change at few blocks. So
        boundaries are of as many *kinds* as there are changes of space before them, plus one: boundaries of one kind
        share a row of every table, and the search is linear in blocks rather than quadratic. (Two kinds may be one
        space, as where a map shrinks and grows again.)

        With ``summed``, coarse blocks from a space to itself are free: as identities are, summed over infinitely many
        ranks at once. The best cut is then the one whose slowest segments are the fastest.
        """
        prices, costs, chain = self.prices, self.prices.costs, self.prices.chain
        begin = span.first
        kinds, spaces, edges = _boundaries(chain.blocks[begin : span.stop])
        stem = costs.split(costs.stem) if chain.stem.nodes and begin == 0 else (0, 0)
        wait = (0, 0) if prices.reads(begin) == "input" else plus(stem, self._message(spaces[0]))
        work = list(map(costs.split, costs.blocks[begin : span.stop]))
        # the first boundary of each kind stands for all; none is before the first block or behind the last one
        fronts = [min(max(first, 1), span.blocks - 1) + begin for first, _ in edges]
        never = FORBIDDEN * costs.total  # where no adapter leads to: no cut falls there, if another can be made
        adapters = [
            (never, never) if prices.why_no_adapter(first, begin) else plus(wait, prices.adapter(first, begin).cost)
            for first in fronts
        ]
        boundary_kinds = range(len(spaces))
        coarse = [
            [
                prices.between(self.coarse, begin + edges[a][0], begin + edges[b][1]) if a + summed <= b else (0, 0)
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
