"""CutProblem, n -> the cut with the smallest critical path; and cuts by stages. Arithmetic on plain lists.

Glossary: ``i`` block, ``a`` and ``b`` boundaries (boundary a stands before block a, the last one after every block),
``j`` segment. A cut is a tuple of starts: segment j holds the blocks from ``starts[j - 1]`` up to the next start.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CutProblem", "cheapest_cuts", "equal_cuts"]


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
            work, start, end = sum(self.work[a:b]), self.kinds[a], self.kinds[b]
            time = max(self.adapter[start] + work, time + message[start]) + self.coarse[start][end] + self.share * work
        return time


def cheapest_cuts(problem: CutProblem, n: int) -> tuple[int, ...]:
    """The starts of the n segments with the smallest critical path, exactly.

    Dynamic programming; the state is (j, b), its value the earliest time at which segment j can end at boundary b::

        t_1(b) = first + work(0, b)
        t_j(b) = min over a of  max(adapter + work(a, b), t_{j-1}(a) + message) + coarse + share * work(a, b)

    It is exact, since what comes before boundary a matters to segment j through ``t_{j-1}(a)`` alone, and an earlier
    ``t_{j-1}(a)`` never makes a later ``t_j(b)``. The answer is ``t_n`` at the last boundary; starts are read off
    backwards from the a that gave each minimum.

    The minimum over a takes constant time on average, by one queue for each kind of boundary (:func:`_segment_more`):
    O(n · blocks · kinds) steps, and O(n · blocks) integers of memory for the starts.

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
    prefix = list(itertools.accumulate(problem.work, initial=0))  # work(a, b) = prefix[b] - prefix[a]
    times: list[float] = [problem.first + value for value in prefix]
    starts_of: list[array[int]] = []  # of segments 2 … n: the best start for each boundary at which it may end
    for j in range(2, n + 1):
        ends = range(j, count - (n - j) + 1) if j < n else range(count, count + 1)  # a block for each later segment
        times, starts = _segment_more(problem, prefix, times, j, ends)
        starts_of.append(starts)
    cut = [count]
    for starts in reversed(starts_of):
        cut.append(starts[cut[-1]])
    return (0, *reversed(cut[1:]))


def _segment_more(
    problem: CutProblem, prefix: list[float], before: list[float], j: int, ends: range
) -> tuple[list[float], array[int]]:
    """``t_j`` at the boundaries ``ends`` and the start of segment j that gives it, from ``t_{j-1}``.

    Among starts a of one kind, adapter, message and coarse block are the same, and with ``share · prefix[b]`` taken out
    the term to minimise is ``max(prefix[b] + offset(a), ready(a))``, where::

        offset(a) = adapter - (1 + share) · prefix[a],    ready(a) = t_{j-1}(a) + message - share · prefix[a]

    ``offset`` falls as a grows. So a start that is later and ready no later than another beats it for every b, and the
    other leaves the queue for good, at its back. In what remains ``ready`` grows from front to back while ``offset``
    falls: the term falls along the queue, then grows. As b moves on, ``prefix[b]`` grows, and once the second start is
    as good as the first it stays so, since the first then waits for its own work, ``prefix[b] + offset``, and not for
    ``ready``. So the first leaves the queue for good, at its front, and the front is the best start. Every start enters
    and leaves once.
    """
    kinds, adapter, coarse, share = problem.kinds, problem.adapter, problem.coarse, problem.share
    message = problem.messages()
    times: list[float] = [0] * len(prefix)
    starts = array("l", bytes(array("l").itemsize * len(prefix)))
    queues: dict[int, deque[tuple[float, float, int]]] = {}  # by kind: (offset, ready, start), from front to back
    for b in range(j, ends.stop):
        a = b - 1
        kind = kinds[a]
        ready = before[a] + message[kind] - share * prefix[a]
        queue = queues.setdefault(kind, deque())
        while queue and queue[-1][1] >= ready:
            queue.pop()
        queue.append((adapter[kind] - (1 + share) * prefix[a], ready, a))
        if b < ends.start:
            continue
        best, work, to = math.inf, prefix[b], kinds[b]
        for kind, queue in queues.items():  # terms are written out: they are most of a long network's plan
            offset, ready, a = queue[0]
            term = work + offset if work + offset > ready else ready
            while len(queue) > 1:
                offset, ready, second = queue[1]
                later = work + offset if work + offset > ready else ready
                if later > term:
                    break
                queue.popleft()
                term, a = later, second
            value = term + coarse[kind][to]
            if value < best:
                best, starts[b] = value, a
        times[b] = best + share * work
    return times, starts


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
    starts = [
        first + part * (length // share) + min(part, length % share)  # the longer ones are the first
        for (first, _), length, share in zip(stages, lengths, shares, strict=True)
        for part in range(share)
    ]
    starts[0] = stages[0][0]
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
