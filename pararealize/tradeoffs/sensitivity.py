r"""The original block by block, n -> what each possible window would cost and the error that it alone would make.

A window of blocks a to b - 1 on n devices begins with the original's :math:`u_a`, from which adapters, fitted in closed
form, make inputs :math:`x_j`. Its segments give :math:`d_j = y_j - x_j`, a correction in closed form is fitted to what
their sum misses (``calibration/channel_maps.py``), and the rest of the network goes on from there in sequence: what
the output then differs by, on batches that were held out, is the window's sensitivity. Windows in which the space
changes are not looked at here (``space_changes.py``): their blocks stay sequential.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from pararealize.analysis.space import Space
from pararealize.calibration.channel_maps import ChannelMap, Moments, Regressions
from pararealize.calibration.masks import rows_at
from pararealize.coarse.output_correction import MapKind, correction_cost, correction_kind, correction_rank
from pararealize.plan.spec import SegmentPlan
from pararealize.planning.window_cuts import balanced_starts

from .block_values import BatchValues, BlockByBlock, Say, output_error, same_spaces

__all__ = ["WindowTrial", "measure_windows", "possible_windows"]

MOST_STARTS = 32  # places at which windows of one length are tried, unless they would leave gaps
MOST_WINDOWS = 64  # that follow one another: of deeper networks the shortest windows are not tried
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # blocks a segment
UNEQUAL = 1.1  # times as much as the cheapest block of a window, and the costs of its blocks differ


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowTrial:
    """A window that was tried by itself.

    Attributes:
        starts: the first block of each segment.
        stop: the block behind the last.
        cost: the longest of its segments, with its correction, in the unit of the blocks' costs.
        error: of the network's output, relative, when this window alone is parallel.
    """

    starts: tuple[int, ...]
    stop: int
    cost: float
    error: float

    @property
    def first(self) -> int:
        """Its first block."""
        return self.starts[0]


def possible_windows(costs: Sequence[float], n: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The segments' starts, and the end, of windows on n devices: n times as many blocks each, or fewer than n blocks.

    Segments are as equal as they can be in cost. Where costs differ, windows one block shorter are tried as well: of
    attention and MLP in turn, the last segment may be an MLP alone. Of deep networks neither every place nor the
    shortest windows are tried; windows of one length leave no gaps.

    Args:
        costs: of each block.
        n: the number of devices.

    Example:
        >>> list(possible_windows([1, 1, 1, 1], 2))
        [((0, 1), 2), ((1, 2), 3), ((2, 3), 4), ((0, 2), 4)]
        >>> list(possible_windows([2, 1, 2], 2))
        [((0, 1), 2), ((1, 2), 3), ((0, 2), 3)]
    """
    blocks, prefix = len(costs), list(itertools.accumulate(costs, initial=0.0))
    whole = [*range(2, n), *(n * size for size in LENGTHS)]
    for length, shorter in ((length, shorter) for length in whole for shorter in (0, 1)):
        tried = length - shorter
        if not 1 < tried <= blocks or blocks // length > MOST_WINDOWS or (shorter and tried in whole):
            continue
        step = next(
            s for s in range(1, tried + 1) if (tried % s == 0 and (blocks - tried) // s < MOST_STARTS) or s == tried
        )
        for first in range(0, blocks - tried + 1, step):
            inside = costs[first : first + tried]
            if not shorter or max(inside) > UNEQUAL * min(inside):
                yield balanced_starts(prefix, first, first + tried, n), first + tried


def measure_windows(
    original: BlockByBlock,
    train: Sequence[BatchValues],
    test: Sequence[BatchValues],
    n: int,
    *,
    coarse: str,
    folds: Collection[int] = (),
    say: Say,
) -> list[WindowTrial]:
    """Try every possible window by itself.

    Args:
        original: the network block by block.
        train: values that adapters and corrections are fitted to.
        test: others, that errors are measured on.
        n: the number of devices.
        coarse: a coarse kind with corrections, or ``"linear"`` for none.
        folds: the blocks that end with a layer into which ``"folded"`` maps can go.
        say: is told how far it is.
    """
    rows = original.rows
    costs = [row.cost for row in rows]
    tried = [(s, stop) for s, stop in possible_windows(costs, n) if same_spaces(rows, s[0], stop)]
    trials, trying = [], _Trials(original, train, test, coarse, folds)
    for i, (starts, stop) in enumerate(tried, 1):
        say(f"n = {n}: window {i} of {len(tried)}, {rows[starts[0]].first_block} to {rows[stop - 1].last_block}")
        trials.append(trying.window(starts, stop))
    return trials


class _Trials:
    """Windows of one network, tried one by one; adapters are fitted once for each place that they lead from and to."""

    def __init__(
        self,
        original: BlockByBlock,
        train: Sequence[BatchValues],
        test: Sequence[BatchValues],
        coarse: str,
        folds: Collection[int],
    ) -> None:
        self._original, self._train, self._test, self._folds = original, train, test, folds
        self._request = correction_kind(coarse)
        self._adapters: dict[tuple[int, int], ChannelMap | None] = {}

    def window(self, starts: tuple[int, ...], stop: int) -> WindowTrial:
        """Try a window."""
        rows, first = self._original.rows, starts[0]
        space, ends = rows[first].x, [*starts[1:], stop]
        cost = max(
            sum(row.cost for row in rows[a:b]) + self._maps_cost(rows[first], begins=a == first)
            for a, b in zip(starts, ends, strict=True)
        )
        found, pairs = None if self._request is None else self._output_map(starts, stop), []
        for values in self._test:
            differences, w = self._sum(values, starts, ends)
            if found is not None:
                w = w + _applied(found, [*differences, values.ends[first]], space)
            pairs.append((self._original.output(values, w, stop), values.output))
        error = output_error(pairs, [values.mask for values in self._test], self._original.by_position)
        return WindowTrial(starts=starts, stop=stop, cost=cost, error=error)

    def _maps_cost(self, row: SegmentPlan, *, begins: bool) -> float:
        """What a segment's corrections cost, in the unit of a block's cost: measured, at the rate of the block.

        Args:
            row: of the window's first block.
            begins: whether it is the first segment, which has no adapter, and a correction that reads its input.
        """
        if self._request is None:
            return 0.0
        wanted = [(self._request.kind, self._request.rank, self._request.kind != "folded", begins)]
        if not begins and self._request.of_adapters is not None:
            wanted.append((*self._request.of_adapters, False, False))
        total = 0.0
        for kind, rank, differs, reads_x in wanted:
            rank = correction_rank(kind, rank, row.x)
            cost = correction_cost(kind, rank, row.x, differs=differs, reads_x=reads_x)
            if self._original.net.plan.unit == "flops":
                total += cost.work_forward + cost.work_backward
            else:
                total += cost.flops_forward * row.cost / max(row.flops_forward, 1)
        return total

    def _sum(self, values: BatchValues, starts: Sequence[int], ends: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The d_j of a batch, and w without corrections."""
        u, space = values.ends[starts[0]], self._original.rows[starts[0]].x
        differences = []
        for a, b in zip(starts, ends, strict=True):
            adapter = self._adapter(starts[0], a)
            x = u if adapter is None else u + _applied(adapter, [u], space)
            differences.append(self._original.run(values, x, a, b) - x)
        return differences, u + torch.stack(differences).sum(0)

    def _adapter(self, first: int, start: int) -> ChannelMap | None:
        """What leads from u_first to u_start, beside the identity."""
        request = None if self._request is None else self._request.of_adapters
        if request is None or start == first:
            return None
        if (first, start) not in self._adapters:
            batches = [
                [
                    ([values.ends[first]], values.ends[start] - values.ends[first], values.ends[start], values.mask)
                    for values in part
                ]
                for part in (self._train, self._test)
            ]
            self._adapters[first, start] = self._map(batches, self._original.rows[first].x, 1, *request)
        return self._adapters[first, start]

    def _output_map(self, starts: tuple[int, ...], stop: int) -> ChannelMap | None:
        """The correction of a window, or none where it would be worse than none on other batches."""
        ends, batches = [*starts[1:], stop], []
        assert self._request is not None
        if self._request.kind == "folded" and not any(end - 1 in self._folds for end in ends):
            return None
        for part in (self._train, self._test):
            rows = []
            for values in part:
                differences, w = self._sum(values, starts, ends)
                true = values.ends[stop]
                rows.append(([*differences, values.ends[starts[0]]], true - w, true, values.mask))
            batches.append(rows)
        # what folded maps come to with what the last layers alone add, calibrate will say
        kind = "dense" if self._request.kind == "folded" else self._request.kind
        return self._map(batches, self._original.rows[starts[0]].x, len(starts) + 1, kind, self._request.rank)

    def _map(
        self,
        batches: Sequence[Sequence[tuple[list[Tensor], Tensor, Tensor, Tensor | None]]],
        space: Space,
        groups: int,
        kind: MapKind,
        rank: int,
    ) -> ChannelMap | None:
        """The map of a kind from features to what is missing, fitted to some batches, chosen by others."""
        sums = []
        for part in batches:
            moments = Moments(groups, space.channels, part[0][1].device)
            for features, *wanted, mask in part:
                missing, true = (rows_at(value, space.channel, mask) for value in wanted)
                moments.add([rows_at(f, space.channel, mask) for f in features], missing, true)
            sums.append(moments)
        regressions = Regressions(sums[0], sums[1])
        if kind == "low-rank":
            found = regressions.low_rank(correction_rank(kind, rank, space))
        else:
            found = regressions.scale() if kind == "scale" else regressions.dense()
        return found if found.error < sums[1].nothing else None


def _applied(found: ChannelMap, features: Sequence[Tensor], space: Space) -> Tensor:
    """What a map makes of features, in the shape of a value."""
    result: Tensor | float = 0.0
    for feature, reads in zip(features, found.reads, strict=True):
        channels_last = feature.movedim(space.channel + 1, -1)
        weights = reads.to(feature)
        result = result + (channels_last * weights if weights.ndim == 1 else channels_last @ weights)
    assert isinstance(result, Tensor)
    if found.gives is not None:
        result = result @ found.gives.to(result)
    return (result + found.bias.to(result)).movedim(-1, space.channel + 1)
