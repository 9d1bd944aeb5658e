"""The output w of one window -> every rank that has segments of the next; and its gradient, the other way.

    in general        the rank of the last segment sends w_m to the ranks of window m + 1; backward, it adds up what
                      they send back, in the order of the ranks, and its own gradient before
    where F is the    w_m = y_1 + Σ (y_j - x_j), summed over all ranks, which all have it then; backward, the gradient
    identity          of w_m is summed over all ranks, and is that of each y_j, and its negative that of each x_j

Which of the two it is stands in :class:`~pararealize.plan.window_ranks.WindowRanks`. Every rank goes on with a leaf of
its own, so that each window is differentiated by itself.
"""

from __future__ import annotations

import torch

from .activity import Activity
from .autograd_cuts import as_leaf
from .messages.message_order import StepMessages
from .rank_segments import WindowSegments, WindowValues

__all__ = [
    "differentiate_all_reduce",
    "end_gradient",
    "expect_begin",
    "pass_end",
    "receive_begin",
    "return_begin_gradient",
]


def expect_begin(window: WindowSegments, run: WindowValues, messages: StepMessages) -> None:
    """Post the receive of what the window begins with, where another rank sends it."""
    before = window.before
    if before is not None and window.run and not before.all_reduces and before.owner != window.segments.rank:
        run.begin_pending = messages.expect(_name(before.m), before.owner)
    if window.ranks.all_reduces:
        run.sums_pending = messages.expect_parts(_name(window.m))


def receive_begin(
    window: WindowSegments, run: WindowValues, end: torch.Tensor | None, messages: StepMessages, activity: Activity
) -> None:
    """What the window begins with: ``end``, where this rank has what the window before ends with, or a message."""
    if window.before is None or not window.run:
        return
    if run.begin_pending is not None:
        with activity.during("receive end", window.first, m=window.m):
            end = messages.receive(run.begin_pending)
    assert end is not None
    run.begin = as_leaf(end) if run.graph else end


def pass_end(
    window: WindowSegments, run: WindowValues, messages: StepMessages, activity: Activity
) -> torch.Tensor | None:
    """Give what the window ends with to the ranks of the next one; ``None`` where this rank does not have it."""
    if window.after is None:
        return None
    name = _name(window.m)
    if window.ranks.all_reduces:
        part = _part(window, run, activity)
        with activity.during("all-reduce", window.last, m=window.m):
            end = messages.sum_over_ranks(name, part, run.sums_pending)
        if run.graph and messages.posts_ahead:
            run.gradients_pending = messages.expect_parts(name, gradients=True)
        return end
    for rank in window.readers:
        assert run.z is not None
        with activity.during("send end", window.after.runs[rank][0], m=window.after.m):
            messages.send(name, run.z, rank)
        if run.graph and messages.posts_ahead:
            run.gradients_pending.append(messages.expect_gradients(name, rank))
    return run.z if window.owns_end else None


@torch.no_grad()
def _part(window: WindowSegments, run: WindowValues, activity: Activity) -> torch.Tensor:
    """What this rank adds to w: y_1, where it has it, and the differences ``y - x`` of its other segments."""
    part = run.y_leaf.get(1)
    for j in window.run:
        if j > 1:
            with activity.during("difference", j, m=window.m):
                difference = run.y_leaf[j] - run.x_leaf[j]
                part = difference if part is None else part + difference
    assert part is not None
    return part


# Backward ------------------------------------------------------------------------------------------------------------


def return_begin_gradient(
    window: WindowSegments, run: WindowValues, messages: StepMessages, activity: Activity
) -> None:
    """Send the gradient of what the window began with to the rank that sent it."""
    if run.begin_pending is None:
        return
    assert run.begin is not None
    assert window.before is not None
    with activity.during("send end", window.first, "backward", window.m):
        messages.send_gradients(_name(window.before.m), [run.begin.grad], run.begin_pending.peer)


def end_gradient(
    window: WindowSegments,
    run: WindowValues,
    begin: torch.Tensor | None,
    messages: StepMessages,
    activity: Activity,
) -> torch.Tensor | None:
    """The gradient of w, the window's output, where this rank differentiates it; otherwise ``None``.

    Args:
        window: of the rank.
        run: what its forward pass kept.
        begin: what this rank began the next window with: the leaf with its own part of the gradient.
        messages: of the step.
        activity: is told of each action.
    """
    if window.after is None:
        return None
    name, gradient = _name(window.m), None if begin is None else begin.grad
    if window.ranks.all_reduces:
        if begin is not None and gradient is None:
            gradient = torch.zeros_like(begin)
        pending = run.gradients_pending or messages.expect_parts(name, gradients=True)
        with activity.during("all-reduce", window.last, "backward", window.m):
            return messages.sum_over_ranks(name, gradient, pending, gradients=True)
    pending = run.gradients_pending or [messages.expect_gradients(name, rank) for rank in window.readers]
    for message in pending:
        with activity.during("receive end", window.after.runs[message.peer][0], "backward", window.after.m):
            (received,) = messages.receive_gradients(message)
        gradient = received if gradient is None else gradient + received
    if gradient is None and window.owns_end:
        assert run.z is not None
        gradient = torch.zeros_like(run.z)
    return gradient if window.owns_end else None


def differentiate_all_reduce(window: WindowSegments, run: WindowValues, gradient: torch.Tensor) -> None:
    """Hand the gradient of w to each y_j, and its negative to each x_j, j > 1."""
    for j in window.run:
        run.y_leaf[j].grad = gradient.to(run.y_leaf[j].dtype)
    rest = [j for j in window.run if j > 1]
    negative = -gradient if rest else None
    for j in rest:
        assert negative is not None
        run.x_leaf[j].grad = negative.to(run.x_leaf[j].dtype)


def _name(m: int) -> str:
    return f"w_{m}"
