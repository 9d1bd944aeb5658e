"""Rows of a plan -> what cannot be of their numbers and their order: too many, too few, twice, not one after the other.

Whatever else is asked of a plan counts on these; so they are checked whenever one is made, not only when one is read.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pararealize.coarse.spec import AdapterPlan, CoarsePlan, CorrectionPlan, NumberedRow
from pararealize.table import quantity

from .spec import SegmentPlan, Window, windows_of

__all__ = ["numbering_faults"]


def numbering_faults(
    segments: Sequence[SegmentPlan],
    adapters: Sequence[AdapterPlan],
    coarse_blocks: Sequence[CoarsePlan],
    corrections: Sequence[CorrectionPlan],
    *,
    n: int,
    source: str,
) -> list[str]:
    """Faults of the number of rows and of their own numbers; of their order where they are as many as they should be.

    Args:
        segments: g^{m,j}, window after window.
        adapters: C^{m,j} likewise, one fewer a window.
        coarse_blocks: F^{m,j} likewise.
        corrections: K^{m,j}, of some segments of windows of several.
        n: how many segments the longest window should have.
        source: what the adapters of the first window read, ``"input"`` or ``"stem"``.
    """
    windows = windows_of(segments, adapters, coarse_blocks, corrections)
    longest = max((window.n for window in windows), default=0)
    if faults := list(_strays(windows, corrections)):
        return faults
    if n < 1 or n != longest:
        return [f"n = {n} needs as many segments in the longest window, which has {longest}"]
    if faults := [*_miscounted(windows, n), *_without_segments(windows, adapters, coarse_blocks)]:
        return faults
    faults = [*_out_of_order(segments), *_misnumbered(windows)]
    if windows[0].sequential and n > 1 and source == "input":
        faults.append("the first window has no adapters, and they read the input")
    return faults


def _strays(windows: Sequence[Window], corrections: Sequence[CorrectionPlan]) -> Iterator[str]:
    """Corrections of no segment that has others beside it, or two of one."""
    corrected = {row.index for window in windows if not window.sequential for row in window.segments}
    strays = [row.name for row in corrections if row.index not in corrected]
    if strays or len({row.index for row in corrections}) != len(corrections):
        names = ", ".join(strays) or "of one segment"
        yield f"corrections {names} belong to no segment of a window of several, or twice"


def _miscounted(windows: Sequence[Window], n: int) -> Iterator[str]:
    """Windows with other than one adapter and one coarse block fewer than segments, or under another's number."""
    for window in windows:
        wanted, m = window.n - 1, window.segments[0].m
        if (len(window.adapters), len(window.coarse_blocks)) != (wanted, wanted):
            where = f"window {m}" if m else f"n = {n}"
            yield (
                f"{where}, {quantity(window.n, 'segment')}, needs one adapter and one coarse block fewer; it has "
                f"{len(window.adapters)} adapters and {len(window.coarse_blocks)} coarse blocks"
            )
        if m != (window.m if len(windows) > 1 else 0):
            yield f"window {window.m} of {len(windows)} is numbered {m}"


def _without_segments(
    windows: Sequence[Window], adapters: Sequence[AdapterPlan], coarse_blocks: Sequence[CoarsePlan]
) -> Iterator[str]:
    in_windows = sum(len(w.adapters) for w in windows), sum(len(w.coarse_blocks) for w in windows)
    if in_windows != (len(adapters), len(coarse_blocks)):
        yield "there are adapters or coarse blocks of windows that have no segments"


def _out_of_order(segments: Sequence[SegmentPlan]) -> Iterator[str]:
    """Segments that do not begin where the one before ends."""
    for before, after in pairwise(segments):
        if after.first != before.last + 1:
            yield f"{after.label} begins at block {after.first}, {before.label} ends at {before.last}"
        if after.x != before.y:
            yield f"{after.label} reads {after.x}, {before.label} gives {before.y}"
    if segments[0].first != 0:
        yield f"{segments[0].label} begins at block {segments[0].first}, not 0"
    for row in segments:
        if row.blocks != row.last - row.first + 1 or row.blocks < 1:
            yield f"{row.label} holds blocks {row.first} to {row.last}, which is not {row.blocks}"


def _misnumbered(windows: Sequence[Window]) -> Iterator[str]:
    """Rows whose j is not their place within the window."""
    for window in windows:
        numbering: list[tuple[str, Sequence[NumberedRow], int]] = [
            ("segment", window.segments, 1),
            ("adapter", window.adapters, 2),
            ("coarse block", window.coarse_blocks, 1),
        ]
        where = f" of window {window.m}" if len(windows) > 1 else ""
        for name, rows, begin in numbering:
            for i, row in enumerate(rows, begin):
                if row.j != i:
                    yield f"{name} {i}{where} is numbered {row.j}"
