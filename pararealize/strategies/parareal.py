"""NetworkCosts, devices, batch -> parareal networks: the best number of segments, windows, cuts and copies."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property

from pararealize.coarse.evidence_table import choose
from pararealize.errors import PararealizeError
from pararealize.plan.plan import Plan
from pararealize.planning.search import plan_segments
from pararealize.table import quantity

from .network_costs import OPTIMIZERS, NetworkCosts
from .replicas import copies_of
from .strategy import Strategy

__all__ = ["PararealPlans", "segment_counts"]

FREE = 1.05  # how much longer than with one window a step may be where more windows are taken
BESIDE = 1  # numbers of segments, in their row, that are tried on both sides of a good one
EXACT = 128  # blocks: cuts of longer networks are searched for less thoroughly
WORSE = 2  # numbers of segments in a row that are slower before larger ones are left out


@dataclasses.dataclass(frozen=True)
class PararealPlans:
    """Plans of one network by segments, batch and coarse kind; each is made once.

    Attributes:
        costs: of the network.
        coarse: the kind that was asked for; the cheapest, and what the evidence says, when left out.
    """

    costs: NetworkCosts
    coarse: str | None = None

    @cached_property
    def _plans(self) -> dict[tuple[int, int, str, int], Plan | None]:
        return {}

    @cached_property
    def refusals(self) -> list[str]:
        """Why plans could not be made, each once."""
        return []

    def plan(self, n: int, batch: int, kind: str, windows: int = 1) -> Plan | None:
        """The plan; nothing where the network has none of the sort."""
        key = n, batch, kind, windows
        if key not in self._plans:
            try:
                self._plans[key] = plan_segments(
                    self.costs.at_batch(batch),
                    self.costs.fields,
                    self.costs.costs_on_ranks(batch),
                    n,
                    coarse=kind,
                    windows=windows,
                    transfer=self.costs.link.message,
                    exact=len(self.costs.chain.blocks) <= EXACT,
                )
            except PararealizeError as error:
                self._plans[key] = None
                if str(error) not in self.refusals:
                    self.refusals.append(str(error))
        return self._plans[key]

    def kinds(self, n: int) -> tuple[str, ...]:
        """The coarse kinds that are tried with n segments."""
        if self.coarse is not None:
            return (self.coarse,)
        return tuple(dict.fromkeys(("linear", choose(self.costs.chain, n).kind)))

    def strategies(self, devices: int, batch: int) -> Iterator[Strategy]:
        """The fastest without copies and the fastest with copies; more windows where they cost nothing."""
        for most in (1, batch):
            if strategy := self.fastest(devices, batch, most):
                yield self.with_windows(strategy, batch) if most == 1 else strategy

    def fastest(self, devices: int, batch: int, most: int, *, kinds: tuple[str, ...] = ()) -> Strategy | None:
        """The fastest over numbers of segments and kinds, with at most so many copies; of ``most`` > 1, with two."""
        best: Strategy | None = None
        for kind in kinds or self.kinds(2):
            before, worse = float("inf"), 0
            for n in segment_counts(min(devices, len(self.costs.chain.blocks))):
                copies = min(copies_of(batch, devices // n), most)
                if most > 1 and copies < 2:
                    continue
                strategy = self.strategy(n, copies, batch, kind)
                if strategy is None:
                    continue
                best = strategy if best is None or _order(strategy) < _order(best) else best
                worse = worse + 1 if strategy.step >= before and most == 1 else 0
                before = strategy.step
                if worse >= WORSE:
                    break
        return best

    def along_batches(self, devices: int, batch: int, sizes: Sequence[int], kind: str) -> dict[int, Strategy | None]:
        """The fastest without copies at batches of other sizes.

        The best number of segments changes little from one size to the next: the numbers beside the last best one are
        tried, from ``batch`` on towards both ends, and further where that helps.
        """
        start, found = self.fastest(devices, batch, 1, kinds=(kind,)), dict[int, Strategy | None]()
        smaller, larger = sorted(size for size in sizes if size <= batch), sorted(s for s in sizes if s > batch)
        for run in (smaller[::-1], larger):
            near = start
            for size in run:
                near = found[size] = None if near is None else self._near(near.n, devices, size, kind)
        return found

    def _near(self, n: int, devices: int, batch: int, kind: str) -> Strategy | None:
        """The fastest of n segments and numbers beside it, as long as one of these is faster."""
        counts = segment_counts(min(devices, len(self.costs.chain.blocks)))
        tried: dict[int, Strategy | None] = {}
        at = min(range(len(counts)), key=lambda i: abs(counts[i] - n))
        while True:
            for i in range(max(at - BESIDE, 0), min(at + BESIDE + 1, len(counts))):
                if i not in tried:
                    tried[i] = self.strategy(counts[i], 1, batch, kind)
            rows = {i: row for i, row in tried.items() if row is not None}
            best = min(rows, key=lambda i: _order(rows[i]), default=at)
            if best == at:
                return rows.get(at)
            at = best

    def with_windows(self, strategy: Strategy, batch: int) -> Strategy:
        """The same with the most windows that leave the step within 5%."""
        blocks, limit = len(self.costs.chain.blocks), FREE * strategy.step
        for power in itertools.count(1):
            windows = 2**power
            if windows > blocks // strategy.n or strategy.plan is None:
                return strategy
            kind = strategy.plan.coarse
            longer = self.strategy(strategy.n, strategy.copies, batch, kind, windows)
            if longer is None or longer.step > limit or (strategy.fits and not longer.fits):
                return strategy
            strategy = longer
        raise AssertionError("windows end")

    def strategy(
        self, n: int, copies: int, batch: int, kind: str, windows: int = 1, *, training: bool = True
    ) -> Strategy | None:
        """One plan as a strategy; made once."""
        key = n, copies, batch, kind, windows, training
        if key not in self._strategies:
            self._strategies[key] = self._strategy(n, copies, batch, kind, windows, training=training)
        return self._strategies[key]

    @cached_property
    def _strategies(self) -> dict[tuple[int, int, int, str, int, bool], Strategy | None]:
        return {}

    def _strategy(self, n: int, copies: int, batch: int, kind: str, windows: int, *, training: bool) -> Strategy | None:
        share = batch // copies
        plan = self.plan(n, share, kind, windows)
        if plan is None:
            return None
        memory, exposed = self._memory(plan, share, training=training), 0.0
        if training:
            exposed = max(self._exposed(plan, j, share, copies) for j in range(1, plan.n + 1))
        step = plan.step_of(training=training)
        copied = f", {copies} copies" if copies > 1 else ""
        several = f", {quantity(len(plan.windows), 'window')}" if len(plan.windows) > 1 else ""
        largest = max(segment.y.numel * segment.y.torch_dtype.itemsize for segment in plan.segments)
        return Strategy(
            name="parareal × data parallel" if copies > 1 else "parareal",
            detail=f"n = {plan.n}{several}, {plan.coarse}{copied}",
            devices=plan.n * copies,
            exact=plan.n == 1,
            step=step + exposed,
            work=self.costs.step(batch, training=training),
            memory=memory,
            sent=(1 + training) * len(plan.windows) * largest * share * (plan.n > 1),
            fits=memory <= self.costs.profile.memory,
            n=plan.n,
            copies=copies,
            plan=plan,
        )

    def _blocks(self, plan: Plan, j: int) -> list[int]:
        """The blocks on device j, in order."""
        return [
            i
            for window in plan.windows
            for row in window.segments
            if window.offset + row.j == j
            for i in range(row.first, row.last + 1)
        ]

    def _exposed(self, plan: Plan, j: int, share: int, copies: int) -> float:
        """What of the sums of device j's gradients over copies is left when its backward pass ends."""
        if copies < 2:
            return 0.0
        parts, blocks = self.costs.parts(share), self._blocks(plan, j)
        gradients = [self.costs.gradients[i] for i in blocks]
        return self.costs.averaging([parts[i][1] for i in blocks], gradients, copies)

    def _memory(self, plan: Plan, share: int, *, training: bool) -> float:
        """Bytes on the device that needs most, adapters and coarse blocks included."""
        copies = 2 + OPTIMIZERS[self.costs.optimizer] if training else 1
        added: dict[int, float] = dict.fromkeys(range(1, plan.n + 1), 0.0)
        for window in plan.windows:
            for adapter, coarse in zip(window.adapters, window.coarse_blocks, strict=True):
                itemsize = coarse.y.torch_dtype.itemsize
                values = adapter.y.numel + coarse.x.numel + coarse.y.numel
                weights = copies * (adapter.parameters + coarse.parameters)
                added[window.offset + adapter.j] += itemsize * (weights + share * values * training)
        return max(
            added[j] + sum(self.costs.memory(i, i + 1, share, training=training) for i in self._blocks(plan, j))
            for j in added
        )


def segment_counts(most: int) -> list[int]:
    """The numbers of segments that are tried: 2, 3, 4, 6, 8, 12, … up to ``most``, and that itself.

    Example:
        >>> segment_counts(10), segment_counts(1)
        ([2, 3, 4, 6, 8, 10], [])
    """
    powers = [2**k for k in range(1, most.bit_length())]
    numbers = {number for power in powers for number in (power, power * 3 // 2) if number <= most}
    return sorted(numbers | ({most} if most > 1 else set()))


def _order(strategy: Strategy) -> tuple[bool, float]:
    return not strategy.fits, strategy.step
