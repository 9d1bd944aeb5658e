"""Costs of blocks, adapters and coarse blocks -> where to cut: plain arithmetic on lists, no network needed.

Glossary: ``i`` block, ``a`` and ``b`` boundaries (boundary a stands before block a, the last one after every block),
``j`` segment. A cut is a tuple of starts: segment j holds the blocks from ``starts[j - 1]`` up to the next start.
"""

from __future__ import annotations

import difflib
import itertools
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pararealize.errors import CutError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CutProblem", "cheapest_cuts", "equal_cuts", "named_cuts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutProblem:
    """What a step costs, as a function of where it is cut.

    Segment j from boundary a to boundary b takes ``s_j`` on its own, and the coarse block in front of it ``c_{j-1}``::

        s_1 = first + work(0, b),    s_j = adapter[kind a] + work(a, b)    for j > 1
        c_{j-1} = coarse[kind a][kind b] + share * work(a, b)
        m_{j-1} = message[kind a]

    Attributes:
        work: the cost of each block.
        kinds: the kind of the space at each boundary, one more than blocks.
        adapter: the cost of an adapter into a space of each kind (with the stem, where adapters wait for it).
        coarse: the cost of a coarse block from a space of one kind to one of another, ``coarse[from][to]``.
        message: the cost of sending a value of a space of each kind to the next segment; nothing when left out.
        first: the cost of the stem.
        share: the part of a segment's own work that its coarse block repeats: 1 for ``"exact"``, otherwise 0.
    """

    work: Sequence[float]
    kinds: Sequence[int]
    adapter: Sequence[float]
    coarse: Sequence[Sequence[float]]
    message: Sequence[float] = ()
    first: float = 0
    share: float = 0

    def messages(self) -> list[float]:
        """The cost of a message, by kind."""
        return list(self.message) or [0] * len(self.adapter)

    def critical_path(self, starts: Sequence[int]) -> float:
        """When the last interface value is there: ``t_1 = s_1``, ``t_j = max(s_j, t_{j-1} + m_{j-1}) + c_{j-1}``."""
        message = self.messages()
        ends = [*starts[1:], len(self.work)]
        time = self.first + sum(self.work[: ends[0]])
        for a, b in itertools.islice(zip(starts, ends, strict=True), 1, None):
            own, start, end = sum(self.work[a:b]), self.kinds[a], self.kinds[b]
            time = max(self.adapter[start] + own, time + message[start]) + self.coarse[start][end] + self.share * own
        return time


def cheapest_cuts(problem: CutProblem, n: int) -> tuple[int, ...]:
    """The starts of the n segments with the smallest critical path, exactly.

    Dynamic programming over boundaries: the best time at which segment j can end at b is ::

        t_j(b) = min over a of  max(adapter + work(a, b), t_{j-1}(a) + message) + coarse + share * work(a, b)

    Among the boundaries a of one kind, ``t_{j-1}(a)`` need not grow with a, but one that is later and no dearer is
    always better; of the others, the first term falls with a and the second grows, so the best a moves only forward as
    b does. One queue a kind therefore finds every minimum in constant time on average: O(n · blocks · kinds) steps and
    O(n · blocks) integers of memory.

    Args:
        problem: the costs.
        n: the number of segments, from 1 to the number of blocks.

    Example:
        >>> alike = CutProblem(work=[1] * 13, kinds=[0] * 14, adapter=[0], coarse=[[1]])
        >>> cheapest_cuts(alike, 3)  # 4, 4 and 5 blocks: nothing waits
        (0, 4, 8)
    """
    count = len(problem.work)
    assert 1 <= n <= count, "the caller checks n"
    done = list(itertools.accumulate(problem.work, initial=0))
    times: list[float] = [problem.first + value for value in done]
    chosen: list[array[int]] = []
    for j in range(2, n + 1):
        times, begins = _one_segment_more(problem, done, times, j, count - (n - j) if j < n else count, last=j == n)
        chosen.append(begins)
    starts = [count]
    for begins in reversed(chosen):
        starts.append(begins[starts[-1]])
    return (0, *reversed(starts[1:]))


def _one_segment_more(
    problem: CutProblem, done: list[float], before: list[float], j: int, stop: int, *, last: bool
) -> tuple[list[float], array[int]]:
    """``t_j`` at every boundary and the start of segment j that gives it, from ``t_{j-1}``."""
    kinds, adapter, coarse, share = problem.kinds, problem.adapter, problem.coarse, problem.share
    message = problem.messages()
    times: list[float] = [0] * len(done)
    begins = array("l", bytes(array("l").itemsize * len(done)))
    queues: dict[int, deque[tuple[float, float, int]]] = {}
    for b in range(j, stop + 1):
        a = b - 1
        ready = before[a] + message[kinds[a]] - share * done[a]
        queue = queues.setdefault(kinds[a], deque())
        while queue and queue[-1][1] >= ready:
            queue.pop()  # later and no dearer: always better
        queue.append((adapter[kinds[a]] - (1 + share) * done[a], ready, a))
        if last and b < stop:
            continue
        own, best, end = done[b], None, kinds[b]
        for kind, queue in queues.items():
            while len(queue) > 1 and max(own + queue[1][0], queue[1][1]) <= max(own + queue[0][0], queue[0][1]):
                queue.popleft()  # passed: the next one is as good now, and stays so for every later b
            offset, ready, a = queue[0]
            value = max(own + offset, ready) + coarse[kind][end]
            if best is None or value < best:
                best, begins[b] = value, a
        assert best is not None
        times[b] = best + share * own
    return times, begins


def equal_cuts(stages: Sequence[tuple[int, int]], n: int) -> tuple[tuple[int, ...], str]:
    """The paper's cuts: equally many blocks in each segment of a stage, and a note where n does not divide over stages.

    With n a multiple of the number of stages, each stage gets as many segments, the longer ones first (111 blocks in
    four: 28, 28, 28, 27). Otherwise segments go to stages in proportion to their blocks, by largest remainders; a stage
    that gets none joins the one before it.

    Args:
        stages: first and last block of each stage, in order and without gaps.
        n: the number of segments.

    Returns:
        The starts, and a note that is empty where every stage has the same number of segments.

    Example:
        >>> equal_cuts([(0, 2), (3, 6), (7, 12), (13, 15)], 8)
        ((0, 2, 3, 5, 7, 10, 13, 15), '')
    """
    lengths = [last - first + 1 for first, last in stages]
    shares = _shares(lengths, n)
    starts = []
    for (first, _), length, share in zip(stages, lengths, shares, strict=True):
        for part in range(share):
            longer = min(part, length % share)
            starts.append(first + part * (length // share) + longer)
    starts[0] = 0
    note = "" if len(set(shares)) == 1 else f"{n} segments over {len(stages)} stages: {', '.join(map(str, shares))}"
    return tuple(starts), note


def _shares(lengths: Sequence[int], n: int) -> list[int]:
    """How many segments each stage gets."""
    each, rest = divmod(n, len(lengths))
    if rest == 0 and all(each <= length for length in lengths):
        return [each] * len(lengths)
    total = sum(lengths)
    shares = [n * length // total for length in lengths]
    order = sorted(range(len(lengths)), key=lambda stage: -(n * lengths[stage] % total))
    for stage in order[: n - sum(shares)]:
        shares[stage] += 1
    return shares


def named_cuts(names: Sequence[str], n: int, blocks: Sequence[str]) -> tuple[int, ...]:
    """Starts at the blocks of those names: n - 1 of them, or n with the first block's.

    Raises:
        CutError: a name is no block's, or stands twice, or their number does not fit n; every fault at once.
    """
    place = {name: i for i, name in enumerate(blocks)}
    faults = []
    for name in dict.fromkeys(names):
        if name not in place:
            close = difflib.get_close_matches(str(name), blocks, n=3)
            hint = f"; close ones: {', '.join(close)}" if close else f"; blocks run from {blocks[0]} to {blocks[-1]}"
            faults.append(f"cuts: {name!r} is not the name of a block{hint}")
        elif list(names).count(name) > 1:
            faults.append(f"cuts: {name!r} stands more than once")
    starts = sorted({place[name] for name in names if name in place} | {0})
    if not faults and len(starts) != n:
        faults.append(
            f"cuts: {len(names)} names make {len(starts)} segments, not n = {n}; name the n - 1 blocks at which the "
            f"second and later segments begin ({blocks[0]}, the first block, may be named too)"
        )
    if faults:
        raise CutError("\n".join(faults))
    return tuple(starts)
