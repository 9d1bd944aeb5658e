"""The original block by block, n -> trials of windows in whose midst the space changes, each converted and calibrated.

Their adapters and coarse blocks are no identities behind the change, so that they cost more and err more: in a
ResNet-56 2.3 to 7 times as much for the same time as windows in front of the change, and 1.0 to 2.2 times as much as
those behind it. They are for networks that have little else, and few are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pararealize.calibration.fitting import calibrate
from pararealize.errors import PararealizeError
from pararealize.network.module import PararealModule
from pararealize.plan.spec import SegmentPlan

from .block_values import BatchValues, BlockByBlock, Say, network_output, output_error, same_spaces
from .sensitivity import WindowTrial

__all__ = ["AUTOMATIC", "covers_half", "measure_windows_across", "windows_across"]

AUTOMATIC = 8  # windows across changes that are tried for each n, where those of one space hold little
SIZES = (1, 2)  # blocks a segment


def covers_half(rows: Sequence[SegmentPlan]) -> bool:
    """Whether half of the work is in blocks that can be in windows of one space: those that have one beside them."""
    pairs = (i for i in range(len(rows) - 1) if same_spaces(rows, i, i + 2))
    inside = {block for i in pairs for block in (i, i + 1)}
    return sum(rows[i].cost for i in inside) >= sum(row.cost for row in rows) / 2


def windows_across(rows: Sequence[SegmentPlan], n: int, most: int) -> list[tuple[int, int]]:
    """The first block, and the one behind the last, of some windows in whose midst the space changes.

    The change is in the middle; of more than ``most`` windows, some at about equal distances.
    """
    windows = list(dict.fromkeys(_candidates(rows, n)))
    if len(windows) <= most:
        return windows
    return [windows[i * len(windows) // most] for i in range(most)]


def _candidates(rows: Sequence[SegmentPlan], n: int) -> Iterator[tuple[int, int]]:
    for size in SIZES:
        length = n * size
        for change, row in enumerate(rows):
            first = min(max(0, change - length // 2), len(rows) - length)
            if row.x != row.y and first >= 0 and not same_spaces(rows, first, first + length):
                yield first, first + length


def measure_windows_across(
    original: BlockByBlock,
    convert: Callable[[int, Sequence[tuple[int, int]]], PararealModule],
    train: Sequence[object],
    test: Sequence[object],
    true: Sequence[BatchValues],
    n: int,
    *,
    most: int,
    seed: int,
    say: Say,
) -> list[WindowTrial]:
    """Try such windows, each by itself in a network that is sequential elsewhere; those that cannot be are passed over.

    Args:
        original: the network block by block.
        convert: from n and, of each window, the first block and the one behind its last, to that network.
        train: batches to calibrate on.
        test: others, to measure errors on.
        true: the original's values for these.
        n: the number of devices.
        most: how many windows, at most.
        seed: of the calibrations.
        say: is told how far it is.
    """
    rows, trials = original.rows, []
    windows = windows_across(rows, n, most)
    for i, (first, stop) in enumerate(windows, 1):
        names = f"{rows[first].first_block} to {rows[stop - 1].last_block}"
        say(f"n = {n}: window {i} of {len(windows)} across a change of space, {names}")
        try:
            net = convert(n, [(first, stop)])
        except PararealizeError as error:  # no adapter or coarse block crosses this change
            say(f"n = {n}: window {i} of {len(windows)} is passed over: {error}")
            continue
        calibrate(net, train, seed=seed, mask=original.mask, renew_statistics=False)
        pairs = [(network_output(net, batch), values.output) for batch, values in zip(test, true, strict=True)]
        parallel = next(window for window in net.plan.windows if not window.sequential)
        saved = net.plan.serial * (1 - 1 / net.plan.speedup)
        trials.append(
            WindowTrial(
                starts=tuple(segment.first for segment in parallel.segments),
                stop=stop,
                cost=sum(row.cost for row in rows[first:stop]) - saved,
                error=output_error(pairs, [values.mask for values in true], original.by_position),
            )
        )
    return trials
