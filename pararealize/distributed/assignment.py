"""Plan, number of ranks -> the run of segments that each rank takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pararealize.errors import DistributedError
from pararealize.plan.plan import Plan

__all__ = ["assign"]


def assign(plan: Plan, ranks: int, assignment: Sequence[int] | None = None) -> tuple[tuple[int, int], ...]:
    """First and last segment of each rank: consecutive runs with the smallest critical path.

    A rank computes the fine part of all its segments (s), waits for z, and then computes its coarse blocks (c), as in
    :attr:`Plan.critical_path <pararealize.plan.plan.Plan.critical_path>`:
    ``t_1 = s_1 + c_1``, ``t_{r+1} = max(s_{r+1}, t_r) + c_{r+1}``. Of several windows, the costs of the segments that
    one device has are added up, as if the windows were one; that is exact where they are divided alike.

    Args:
        plan: its costs.
        ranks: how many, from 1 to the number of segments.
        assignment: how many segments each rank takes, in order, in place of that.

    Raises:
        DistributedError: more ranks than segments, or an assignment that does not fit.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> plan = pararealize(resnet20(), n=4, coarse="linear").plan
        >>> assign(plan, 2), assign(plan, 2, [1, 3])
        (((1, 2), (3, 4)), ((1, 1), (2, 4)))
    """
    if ranks > plan.n:
        raise DistributedError(
            f"{ranks} ranks for n = {plan.n} segments: a segment is not split; start {plan.n} ranks, give the mesh a "
            f"dp dimension, or convert with n = {ranks} or more"
        )
    if assignment is not None:
        if len(assignment) != ranks or sum(assignment) != plan.n or min(assignment) < 1:
            raise DistributedError(
                f"assignment is {list(assignment)!r}; pass how many of the {plan.n} segments each of the {ranks} ranks "
                "takes, at least one each"
            )
        ends = list(itertools.accumulate(assignment))
        return tuple((end - count + 1, end) for end, count in zip(ends, assignment, strict=True))
    # Dynamic programme over (rank r, last segment b of ranks 1 … r). Least time until z_b is there:
    #     time_1(b) = fine(1 … b) + coarse(1 … b)
    #     time_r(b) = min over a of  max(fine(a+1 … b), time_{r-1}(a)) + coarse(a+1 … b)
    # A later z_a never makes z_b earlier, so the best way to (r, b) goes through a best way to (r-1, a).
    fine_costs, coarse_costs = [0.0] * plan.n, [0.0] * plan.n
    for window in plan.windows:
        for row in (*window.segments, *window.adapters):
            fine_costs[window.offset + row.j - 1] += row.cost
        for block in window.coarse_blocks:
            coarse_costs[window.offset + block.j] += block.cost
    fine = list(itertools.accumulate(fine_costs, initial=0.0))
    coarse = list(itertools.accumulate(coarse_costs, initial=0.0))
    time = {b: fine[b] + coarse[b] for b in range(1, plan.n + 1)}
    ends_before: list[dict[int, int]] = []  # for ranks 2, 3, …: the last segment of the rank before, by b
    for rank in range(2, ranks + 1):
        best = {
            b: min((max(fine[b] - fine[a], time[a]) + coarse[b] - coarse[a], a) for a in range(rank - 1, b))
            for b in range(rank, plan.n + 1)
        }
        time = {b: value for b, (value, _) in best.items()}
        ends_before.append({b: a for b, (_, a) in best.items()})
    ends = [plan.n]
    for end_before in reversed(ends_before):
        ends.append(end_before[ends[-1]])
    return tuple((a + 1, b) for a, b in itertools.pairwise([0, *reversed(ends)]))
