r"""The original block by block, n -> what each possible window would cost and the error that it alone would make.

A window of blocks a to b - 1 on n devices begins with the original's :math:`u_a`. Its segments give
:math:`d_j = y_j - u_a`, a correction in closed form is fitted to what their sum misses (``channel_maps.py``), and the
rest of the network goes on from there in sequence: what the output then differs by, on batches that were held
out, is the window's sensitivity. Windows in which the space changes are not looked at: their blocks stay sequential.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pararealize.analysis.space import Space
from pararealize.calibration.channel_maps import ChannelMap, Moments, Regressions
from pararealize.coarse.output_correction import correction_cost, correction_kind, correction_rank

from .block_values import BatchValues, BlockByBlock, Say, output_error, same_spaces

__all__ = ["WindowTrial", "measure_windows", "possible_windows"]

MOST_STARTS = 32  # places at which windows of one length are tried, unless they would leave gaps
MOST_WINDOWS = 64  # that follow one another: of deeper networks the shortest windows are not tried
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # blocks a segment


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


def possible_windows(blocks: int, n: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The segments' starts, and the end, of windows on n devices: of equally many blocks, and shorter ones of one each.

    Of deep networks neither every place nor the shortest windows are tried; windows of one length leave no gaps.

    Example:
        >>> list(possible_windows(4, 2))
        [((0, 1), 2), ((1, 2), 3), ((2, 3), 4), ((0, 2), 4)]
    """
    shapes = [(length, 1) for length in range(2, n)] + [(n, size) for size in LENGTHS]
    for segments, size in shapes:
        length = segments * size
        if length > blocks or blocks // length > MOST_WINDOWS:
            continue
        step = next(
            s for s in range(1, length + 1) if (length % s == 0 and (blocks - length) // s < MOST_STARTS) or s == length
        )
        for first in range(0, blocks - length + 1, step):
            yield tuple(range(first, first + length, size)), first + length


def measure_windows(
    original: BlockByBlock,
    train: Sequence[BatchValues],
    test: Sequence[BatchValues],
    n: int,
    *,
    coarse: str,
    say: Say,
) -> list[WindowTrial]:
    """Try every possible window by itself.

    Args:
        original: the network block by block.
        train: values that corrections are fitted to.
        test: others, that errors are measured on.
        n: the number of devices.
        coarse: a coarse kind with corrections, or ``"linear"`` for none.
        say: is told how far it is.
    """
    rows = original.rows
    tried = [(s, stop) for s, stop in possible_windows(len(rows), n) if same_spaces(rows, s[0], stop)]
    trials = []
    for i, (starts, stop) in enumerate(tried, 1):
        say(f"n = {n}: window {i} of {len(tried)}, {rows[starts[0]].first_block} to {rows[stop - 1].last_block}")
        trials.append(_trial(original, train, test, starts, stop, coarse))
    return trials


def _trial(
    original: BlockByBlock,
    train: Sequence[BatchValues],
    test: Sequence[BatchValues],
    starts: tuple[int, ...],
    stop: int,
    coarse: str,
) -> WindowTrial:
    first, space = starts[0], original.rows[starts[0]].x
    ends = [*starts[1:], stop]
    segments = [sum(row.cost for row in original.rows[a:b]) for a, b in zip(starts, ends, strict=True)]
    request, found = correction_kind(coarse), None
    cost = max(segments)
    if request is not None:
        rank = correction_rank(request.kind, request.rank, space)
        per_operation = original.rows[first].cost / max(original.rows[first].flops_forward, 1)
        cost += correction_cost(request.kind, rank, space, differs=True, reads_x=True).flops_forward * per_operation
        found = _fitted(original, train, test, starts, stop, request.kind, rank)
    pairs = []
    for values in test:
        differences = _differences(original, values, starts, ends)
        u = values.ends[first]
        w = u + torch.stack(differences).sum(0)
        if found is not None:
            w = w + _applied(found, [*differences, u], space)
        pairs.append((original.output(values, w, stop), values.output))
    return WindowTrial(starts=starts, stop=stop, cost=cost, error=output_error(pairs))


def _differences(
    original: BlockByBlock, values: BatchValues, starts: Sequence[int], ends: Sequence[int]
) -> list[Tensor]:
    u = values.ends[starts[0]]
    return [original.run(values, u, a, b) - u for a, b in zip(starts, ends, strict=True)]


def _fitted(
    original: BlockByBlock,
    train: Sequence[BatchValues],
    test: Sequence[BatchValues],
    starts: tuple[int, ...],
    stop: int,
    kind: str,
    rank: int,
) -> ChannelMap | None:
    """The correction of a window, or none where it would be worse than none on other batches."""
    space, device = original.rows[starts[0]].x, train[0].ends[0].device
    ends = [*starts[1:], stop]
    sums = []
    for batches in (train, test):
        moments = Moments(len(starts) + 1, space.channels, device)
        for values in batches:
            differences = _differences(original, values, starts, ends)
            u, true = values.ends[starts[0]], values.ends[stop]
            missing = true - u - torch.stack(differences).sum(0)
            moments.add(
                [rows_of(value, space) for value in (*differences, u)], rows_of(missing, space), rows_of(true, space)
            )
        sums.append(moments)
    regressions = Regressions(sums[0], sums[1])
    found = regressions.low_rank(rank) if kind == "low-rank" else getattr(regressions, kind)()
    return found if found.error < sums[1].nothing else None


def rows_of(value: Tensor, space: Space) -> Tensor:
    """``(batch, *space)`` with the channels last and every other axis a row."""
    return value.movedim(space.channel + 1, -1).reshape(-1, space.channels)


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
