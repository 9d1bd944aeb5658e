"""Windows as a user asks for them (a number, names of blocks, blocks left as they are) -> spans of blocks, or an error.

A window is a span of blocks ``(first, stop)``, ``stop`` not included. Blocks that are sequential form windows of one
segment; the others are divided into as many windows as were asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.cost import Costs
from pararealize.coarse.evidence_table import choose_front
from pararealize.errors import CutError, PlanError
from pararealize.table import quantity

from .arguments import block_places, whole_number
from .window_cuts import WindowProblem, window_starts

__all__ = [
    "Sequential",
    "WindowSpan",
    "Windows",
    "check_segments",
    "named_windows",
    "sequential_blocks",
    "sequential_front",
    "window_spans",
    "windows_request",
]

Windows: TypeAlias = int | Literal["auto"] | Sequence[str]
Sequential: TypeAlias = int | Literal["auto"] | Sequence[str]


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """The blocks of one window.

    Attributes:
        first: its first block.
        stop: the block behind its last.
        sequential: whether it is to be one segment, whatever n is.
    """

    first: int
    stop: int
    sequential: bool = False

    @property
    def blocks(self) -> int:
        """How many."""
        return self.stop - self.first


def sequential_blocks(chain: BlockChain, sequential: Sequential) -> frozenset[int]:
    """The blocks that stay as they are, by number.

    Raises:
        CutError: the number is none, or a name is no block's.
    """
    blocks = len(chain.blocks)
    if not isinstance(sequential, str) and isinstance(sequential, Collection):
        return frozenset(block_places(chain, list(sequential), "sequential"))
    count = None if isinstance(sequential, str) else whole_number(sequential)
    if count is None or not 0 <= count <= blocks:
        raise CutError(
            f"sequential = {sequential!r} is out of range: {type(chain.capture.model).__name__} has {blocks} blocks; "
            f'pass how many of the first ones stay as they are, 0 to {blocks}, names of blocks, or "auto"'
        )
    return frozenset(range(count))


def sequential_front(chain: BlockChain, n: int, windows: Windows, cuts: str | Sequence[str]) -> tuple[int, str]:
    """How many of the first blocks ``sequential="auto"`` is, by what was seen of networks like it, and why.

    Windows and cuts that are asked for go first: as many blocks are left as the windows need, and those that are named.
    """
    front, number = choose_front(chain, n), whole_number(windows)
    places = {block.name: i for i, block in enumerate(chain.blocks)}
    by_name = [] if isinstance(windows, str) or not isinstance(windows, Collection) else windows
    begins = [name for name in by_name if name in places]
    later = [] if isinstance(cuts, str) else [name for name in cuts if name in places and name not in begins]
    limits = [places[name] for name in begins] + [max(0, places[name] - 1) for name in later]
    if number is not None:
        limits.append(max(0, len(chain.blocks) - (n if number == 1 else number)))
    blocks = min([front.blocks, *limits])
    fewer = f", not {front.blocks}, as the windows asked for need the others" if blocks < front.blocks else ""
    return blocks, f'sequential, "auto", is {quantity(blocks, "block")} in front{fewer}: {front.why}'


def windows_request(chain: BlockChain, windows: Windows, sequential: Collection[int]) -> int | tuple[int, ...] | None:
    """A number of windows, the blocks at which they begin, or ``None`` for ``"auto"``.

    Raises:
        PlanError: it is no number of windows, or larger than there are blocks for.
        CutError: a name is no block's, stands twice, is out of order, or is that of a sequential block.
    """
    if isinstance(windows, str):
        if windows != "auto":
            raise PlanError(f'windows = {windows!r} is unknown; pass a number, a list of names of blocks, or "auto"')
        return None
    if isinstance(windows, Collection):
        if not windows:
            raise CutError("windows = [] names no block; pass the blocks at which windows begin, or 1 for one window")
        places = block_places(chain, list(windows), "windows", ordered=True)
        inside = [chain.blocks[i].name for i in places if i in sequential]
        if inside:
            raise CutError(
                f"windows: {', '.join(map(repr, inside))} stay as they are (sequential), so that no window begins "
                "there; name others, or leave them out of sequential"
            )
        return tuple(places)
    number, most = whole_number(windows), len(chain.blocks) - len(sequential)
    if number is None or not 1 <= number <= max(most, 1):
        left = f" that are not sequential, of {len(chain.blocks)}" if sequential else ""
        raise PlanError(
            f"windows = {windows!r} is out of range: {type(chain.capture.model).__name__} has {most} blocks{left}; "
            f"pass a number from 1 (the paper's network) to {max(most, 1)} (the original), names of the blocks at "
            'which windows begin, or "auto"'
        )
    return number


def window_spans(
    chain: BlockChain, costs: Costs, n: int, windows: int | tuple[int, ...], sequential: Collection[int]
) -> tuple[WindowSpan, ...]:
    """The windows of a network, in order and without gaps.

    Runs of blocks between sequential ones have at least one window each, and more in proportion to what they cost.

    Args:
        chain: the network's blocks.
        costs: what they cost.
        n: the number of devices.
        windows: how many, or the blocks at which they begin.
        sequential: blocks that stay as they are.
    """
    blocks = len(chain.blocks)
    runs = [(flag, list(run)) for flag, run in groupby(range(blocks), key=lambda i: i in sequential)]
    work = [costs.split(cost) for cost in costs.blocks]
    totals = [forward + backward for forward, backward in work]
    parallel = [run for flag, run in runs if not flag]
    if isinstance(windows, tuple):
        cuts: dict[int, Iterable[int]] = {run[0]: sorted({run[0], *(set(windows) & set(run))}) for run in parallel}
    else:
        problem = WindowProblem(work=totals, spaces=_spaces(chain), n=n)
        shares = _shares([(sum(totals[i] for i in run), len(run)) for run in parallel], windows)
        cuts = {
            run[0]: window_starts(problem, run[0], run[-1] + 1, share)
            for run, share in zip(parallel, shares, strict=True)
        }
    spans: list[WindowSpan] = []
    for flag, run in runs:
        starts = [run[0]] if flag else [*cuts[run[0]]]
        ends = [*starts[1:], run[-1] + 1]
        spans += [WindowSpan(a, b, sequential=flag) for a, b in zip(starts, ends, strict=True)]
    return tuple(spans)


def _spaces(chain: BlockChain) -> list[int]:
    """The number of the space at each boundary; it grows wherever a block changes the space."""
    numbers = [0]
    for block in chain.blocks:
        numbers.append(numbers[-1] + (block.x != block.y))
    return numbers


def _shares(runs: Sequence[tuple[float, int]], windows: int) -> list[int]:
    """How many windows each run of blocks has, from (what it costs, how many blocks it has)."""
    shares = [1] * len(runs)
    for _ in range(windows - len(runs)):  # each goes where a window would cost most
        open_runs = [i for i, (_, count) in enumerate(runs) if shares[i] < count]
        if not open_runs:
            break
        shares[max(open_runs, key=lambda i: runs[i][0] / shares[i])] += 1
    return shares


def check_segments(chain: BlockChain, n: int, spans: Sequence[WindowSpan], windows: Windows) -> None:
    """Raise a PlanError where one window alone was asked for, and it has fewer blocks than segments."""
    most = max((span.blocks for span in spans if not span.sequential), default=0)
    if windows != 1 or most >= n or n == 1:
        return
    kept = sum(span.blocks for span in spans if span.sequential)
    raise PlanError(
        f"n = {n} is out of range: {type(chain.capture.model).__name__} has {len(chain.blocks)} blocks, {kept} of "
        f"which are sequential, so that the longest window has {most}; pass n = 1{f' to {most}' if most > 1 else ''}"
    )


def named_windows(
    chain: BlockChain, names: Sequence[int], spans: Sequence[WindowSpan], n: int
) -> list[tuple[int, ...]]:
    """The first block of each segment, window by window, where cuts are names of blocks.

    Args:
        chain: the network's blocks.
        names: the blocks that were named.
        spans: the windows, each of which begins with a segment, named or not.
        n: the number of devices.

    Raises:
        CutError: a window has more than n segments, or none has n, or a sequential one is cut; every fault at once.
    """
    windows, faults = list[tuple[int, ...]](), list[str]()
    for span in spans:
        starts = tuple(sorted({span.first, *(i for i in names if span.first <= i < span.stop)}))
        first, last = chain.blocks[span.first].name, chain.blocks[span.stop - 1].name
        if span.sequential and len(starts) > 1:
            inside = ", ".join(repr(chain.blocks[i].name) for i in starts[1:])
            faults.append(f"cuts: {inside} stand within blocks that stay as they are, {first} to {last} (sequential)")
        elif len(spans) > 1 and len(starts) > n:
            faults.append(
                f"cuts: {len(starts)} segments in the window from {first} to {last}, and n = {n}; name fewer blocks "
                "there, or more windows"
            )
        windows.append(starts)
    if not faults and (most := max(map(len, windows))) != n:
        begin = next((span.first for span in spans if not span.sequential), 0)
        where = "make" if len(spans) == 1 else "leave windows of at most"
        count = f"{len(names)} names {where} {most} segments, not n = {n}"
        faults.append(
            f"cuts: {count}; name the n - 1 blocks at which the second and later segments "
            f"{'' if len(spans) == 1 else 'of a window '}begin ({chain.blocks[begin].name}, the first block"
            f"{' that is not sequential' if begin else ''}, may be named too)"
        )
    if faults:
        raise CutError("\n".join(faults))
    return windows
