"""Plan, Times -> Timeline: who does what when, simulated without devices.

Each rank computes one action at a time, in a fixed order; a transfer takes ``latency + bytes / bandwidth`` and occupies
nobody. So the start of every action follows from what it needs and from what its rank did before: no queue, no chance.

    rank 0   C^1 g^1 ─z_1→                                                      ∇ g^1 C^1
    rank 1   C^2 g^2 ····· F^1 ─z_2→                              F^1 ─∇z_1→ g^2 C^2
    rank 2   C^3 g^3 ················ F^2  head │ head  F^2 ─∇z_2→ g^3 C^3
"""

import itertools
from collections.abc import Sequence

from pararealize.argument_types import typed_arguments
from pararealize.errors import PlanError

from .plan import Plan
from .scheduled_step import ReduceLinear, device_runs, step_actions
from .timeline import Timeline
from .times import Times, plan_times
from .transfer import Transfer, transfer_fault

__all__ = ["simulate"]


@typed_arguments(PlanError)
def simulate(
    plan: Plan,
    costs: Times | None = None,
    *,
    latency: float | None = None,
    bandwidth: float | None = None,
    batch: int | None = None,
    ranks: int | None = None,
    assignment: Sequence[int] | None = None,
    overlap: bool = True,
    reduce_linear: ReduceLinear = "auto",
    training: bool = True,
    rate: float | None = None,
) -> Timeline:
    r"""Simulate one step of a parareal network.

    With fine times :math:`s_j` (adapter and, for j = 1, stem included), coarse times :math:`c_j`, one device for
    each segment of a window and messages that cost nothing, the interface values of a window are there at

    .. math:: t_1 = s_1, \quad t_{j+1} = \max(s_{j+1}, t_j) + c_j,

    and the backward pass is the mirror image: a device differentiates F^{j-1} first, sends the gradient, then g^j.

    Args:
        plan: the plan.
        costs: seconds of its parts, as :func:`~pararealize.measure_network` gives them; otherwise those of
            :func:`~pararealize.plan.times.plan_times`.
        latency: seconds of a message; what the plan was made for when left out.
        bandwidth: bytes a second of a message; likewise. Messages of a plan that was made without cost nothing.
        batch: samples a step, for messages and counted plans; the plan's when left out.
        ranks: devices; fewer than segments get consecutive runs of them.
        assignment: how many segments each device has, in order, in place of ``ranks``.
        overlap: ``False`` for the paper's way, in which the coarse chain begins when all segments are done, and
            backward, segments begin when it is.
        reduce_linear: take neighbouring coarse blocks that are the identity as one sum over their devices forward, and
            one broadcast backward, each of logarithmic depth; see :func:`~pararealize.network.parareal.reduction`. A
            window that another one follows, and whose coarse blocks all are, ends in an all-reduce over p devices in
            both directions, as long as ``⌈log2 p⌉`` messages one after the other (recursive doubling). ``"auto"`` takes
            whichever makes this step shorter, as ranks do.
        training: ``False`` for the forward pass alone.
        rate: operations a second, for counted plans without ``costs``; the plan's when left out.

    Raises:
        PlanError: a number is out of range, or costs and plan do not fit.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks, make_plan
        >>> from pararealize.models import resnet20
        >>> plan = make_plan(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))), 3, coarse="linear")
        >>> timeline = simulate(plan)
        >>> round(timeline.speedup, 2), [action.name for action in timeline.of(2)][:4]
        (2.44, ['C3', 'g3', 'F2', 'head'])
    """
    batch = plan.batch if batch is None else batch
    latency = plan.latency if latency is None else latency
    bandwidth = plan.transfer.bandwidth if bandwidth is None else bandwidth
    rate = plan.rate if rate is None else rate
    runs = _runs(plan.n, plan.n if ranks is None else ranks, assignment)
    _check(plan, costs, latency, bandwidth, batch)
    times = plan_times(plan, batch=batch, rate=rate) if costs is None else costs
    transfer = Transfer(latency, bandwidth)
    step = step_actions(
        plan,
        times,
        runs,
        batch=batch,
        transfer=transfer,
        reduce_linear=reduce_linear,
        overlap=overlap,
        training=training,
    )
    counted = costs is None and plan.unit == "flops"
    seconds = f"counted work at {rate:g} operations a second" if counted else "measured seconds"
    notes = [f"batch {batch}, {transfer}", seconds]
    if not overlap:
        notes.append("no overlap: the coarse chain waits for all segments, and they for it")
    if step.reduces:
        notes.append("linear coarse blocks within a stage are reduced and broadcast")
    return Timeline(
        model=plan.model, n=plan.n, ranks=len(runs), origin="simulated", actions=step.actions, notes=tuple(notes),
        corrections=times.corrections[0] + (times.corrections[1] if training else 0.0),
    )  # fmt: skip


def _runs(n: int, ranks: int, assignment: Sequence[int] | None) -> list[tuple[int, int]]:
    """First and last segment of each rank."""
    if ranks == n and assignment is None:
        return device_runs(n)
    if not 1 <= ranks <= n:
        raise PlanError(f"ranks is {ranks}; pass 1 to {n}, the number of segments")
    if assignment is not None and (sum(assignment) != n or min(assignment) < 1):
        raise PlanError(f"assignment is {list(assignment)!r}; pass how many of the {n} segments each device has")
    owners = [(j - 1) * ranks // n for j in range(1, n + 1)]
    counts = [owners.count(rank) for rank in range(ranks)] if assignment is None else assignment
    ends = itertools.accumulate(counts)
    return [(end - count + 1, end) for end, count in zip(ends, counts, strict=True)]


def _check(plan: Plan, costs: Times | None, latency: float, bandwidth: float, batch: int) -> None:
    faults = [fault] if (fault := transfer_fault(latency, bandwidth)) else []
    if batch < 1:
        faults.append(f"batch is {batch}; pass 1 or more")
    rows = plan.segments, plan.adapters
    if costs is not None and (len(costs.segments), len(costs.adapters)) != tuple(map(len, rows)):
        faults.append(
            f"costs are of {len(costs.segments)} segments and the plan has {len(plan.segments)}; measure that network"
        )
    if faults:
        raise PlanError("; ".join(faults))
