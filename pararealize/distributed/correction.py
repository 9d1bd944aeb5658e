"""x_j and y_j of a rank's segments, and what comes from others -> z_j, passed on; and the gradients, the other way.

    in a row       receive z_i                            i: the last segment before this rank's
                   z_j = y_j + F^{j-1}(z_{j-1} - x_j)     for each of its segments, on leaves
                   send z_j                               on the last rank: the head
    within a sum   s = Σ (y_j - x_j) + Σ received sums    where F is the identity: nobody needs z_j
                   send s
    at its end     receive z_i of before the sum
                   z_j = z_i + s                          and on as in a row

Backward, what goes to other ranks leaves first, so that these can differentiate their segments at the same time. Who
passes what to whom is decided in :mod:`pararealize.plan.peers`. All of it is of one window of the network; what goes
from one window to the next is in ``window_ends.py``.
"""

from __future__ import annotations

import torch

from pararealize.plan.recording import Moment

from .activity import Activity
from .autograd_cuts import as_leaf
from .messages.message_order import PendingMessage, StepMessages
from .rank_segments import SegmentValues, WindowSegments, WindowValues

__all__ = ["correct", "differentiate_correction", "expect_corrections"]


def expect_corrections(window: WindowSegments, run: WindowValues, messages: StepMessages) -> None:
    """Post the receives of z and of sums, before anything is computed."""
    ranks, peers = window.ranks, window.peers
    if peers.z_from is not None:
        run.z_pending = messages.expect(ranks.value("z", ranks.last_of(peers.z_from)), peers.z_from)
    for rank in peers.sums_from:
        run.sums_pending.append(messages.expect(ranks.value("s", ranks.last_of(rank)), rank))


def correct(
    window: WindowSegments, run: WindowValues, values: SegmentValues, messages: StepMessages, activity: Activity
) -> None:
    """``z_{j+1} = y_{j+1} + F^j(z_j - x_{j+1})``, equations (3a) to (3c), for this rank's segments, and the head."""
    ranks, peers, m = window.ranks, window.peers, window.m
    if peers.terms:
        run.total = _summed(window, run, messages, activity)
    if peers.sum_to is not None:
        assert run.total is not None
        with activity.during("send sum", window.last, m=m):
            messages.send(ranks.value("s", window.last), run.total, peers.sum_to)
        _expect_gradient(window, run, messages)
        return
    if run.z_pending is None:
        z = run.y_leaf[1]
    else:
        assert peers.z_from is not None
        with activity.during("receive", ranks.last_of(peers.z_from) + 1, m=m):
            z = messages.receive(run.z_pending)
        z = run.z_leaf = as_leaf(z) if run.graph else z
    begin = max(window.first, 2)
    if run.total is not None:
        begin = peers.terms.stop
        with activity.during("coarse", begin - 1, m=m):
            z = run.corrected[begin - 1] = z + run.total
    for j in range(begin, window.last + 1):
        with activity.during("coarse", j, m=m):
            z = run.y_leaf[j] + window.call("coarse", j - 1, values.values, z - run.x_leaf[j])
        run.corrected[j] = z
    run.z = z
    if peers.z_to is not None:
        with activity.during("send", window.last, m=m):
            messages.send(ranks.value("z", window.last), z, peers.z_to)
        _expect_gradient(window, run, messages)
    elif window.after is None:
        if not run.corrected and run.graph:
            z = z.clone()  # a window of one segment: the head may change it in place, and it is a leaf
        with activity.during("head", window.last, m=m):
            values.output = window.segments.call("head", 0, values.values, z)


def _summed(window: WindowSegments, run: WindowValues, messages: StepMessages, activity: Activity) -> torch.Tensor:
    """Add up the differences of this rank and the sums of others."""
    total = received = None
    for j in window.peers.terms:
        with activity.during("difference", j, m=window.m):
            difference = run.y_leaf[j] - run.x_leaf[j]
            total = difference if total is None else total + difference
    assert total is not None
    for rank, pending in zip(window.peers.sums_from, run.sums_pending, strict=True):
        with activity.during("receive sum", window.ranks.last_of(rank), m=window.m):
            value = messages.receive(pending)
        if received is None:
            received = value
            continue
        with activity.during("sum", window.last, m=window.m):
            received = received + value
    if received is not None:
        run.sums_leaf = as_leaf(received) if run.graph else received
        with activity.during("sum", window.last, m=window.m):
            total = total + run.sums_leaf
    return total


def _expect_gradient(window: WindowSegments, run: WindowValues, messages: StepMessages) -> None:
    """Post the receive of the gradient of what was just sent, where nothing else may be matched with it."""
    # over NCCL, which knows no tags, later windows exchange messages with the same rank before that gradient comes
    if run.graph and (window.after is None or messages.posts_ahead):
        run.gradient_pending = _gradient_message(window, messages)


def _gradient_message(window: WindowSegments, messages: StepMessages) -> PendingMessage:
    """The message that brings the gradient of this rank's z, or of its sum."""
    peers, value = window.peers, window.ranks.value
    if peers.sum_to is not None:
        return messages.expect_gradients(value("s", window.last), peers.sum_to)
    assert peers.z_to is not None
    return messages.expect_gradients(value("z", window.last), peers.z_to)


# Backward ------------------------------------------------------------------------------------------------------------


def differentiate_correction(
    window: WindowSegments,
    run: WindowValues,
    messages: StepMessages,
    activity: Activity,
    loss: torch.Tensor | None,
    gradient: torch.Tensor | None = None,
) -> None:
    """Differentiate the head and this rank's coarse blocks, and send the gradients of what came.

    Args:
        window: of the rank.
        run: what its forward pass kept.
        messages: of the step.
        activity: is told of each action.
        loss: on the last rank, in the last window, what to differentiate.
        gradient: on the rank that a window before ends on, the gradient of its output.
    """
    ranks, peers = window.ranks, window.peers
    if loss is None and gradient is None:
        pending = run.gradient_pending or _gradient_message(window, messages)
        whole = peers.z_to == window.segments.rank + 1  # otherwise it is that of a sum
        with activity.during("receive" if whole else "receive sum", window.last, "backward", window.m):
            (gradient,) = messages.receive_gradients(pending)
    if peers.sum_to is not None:
        assert run.total is not None
        _send_gradient_of_sums(window, messages, activity, gradient)
        with activity.during("coarse", window.last, "backward", window.m):
            torch.autograd.backward(run.total, gradient)
        return
    assert run.z is not None
    if loss is None and run.z is run.y_leaf.get(1):
        run.z.grad = gradient
        return
    _differentiate(window, run, activity, run.z if loss is None else loss, gradient)
    if peers.z_from is not None:
        assert run.z_leaf is not None
        j = ranks.last_of(peers.z_from)
        action = ("send sum", j) if peers.sums_from else ("send", window.first)
        with activity.during(*action, "backward", window.m):
            messages.send_gradients(ranks.value("z", j), [run.z_leaf.grad], peers.z_from)
    if run.sums_leaf is not None:
        _send_gradient_of_sums(window, messages, activity, run.sums_leaf.grad)


def _send_gradient_of_sums(
    window: WindowSegments, messages: StepMessages, activity: Activity, gradient: torch.Tensor | None
) -> None:
    """Send the gradient of a sum to those that gave parts of it, first to those that have to pass it on."""
    for rank in reversed(window.peers.sums_from):
        j = window.ranks.last_of(rank)
        with activity.during("send sum", j, "backward", window.m):
            messages.send_gradients(window.ranks.value("s", j), [gradient], rank)


def _differentiate(
    window: WindowSegments, run: WindowValues, activity: Activity, value: torch.Tensor, gradient: torch.Tensor | None
) -> None:
    """One backward call over head and coarse blocks; a recording has a row for each, told apart by hooks."""
    has_head = gradient is None
    number = f"{window.m},{window.last - 1}" if window.m else f"{window.last - 1}"
    activity.watch.doing(f"{'head' if has_head else f'F^{number}'} backward")
    if activity.recording is None:
        torch.autograd.backward(value, gradient)
        return
    recording = activity.recording
    times: dict[int, Moment] = {}  # when the call passed each z_j
    for j, z in run.corrected.items():
        z.register_hook(lambda _, j=j: times.__setitem__(j, recording.now()))
    start = recording.now()
    torch.autograd.backward(value, gradient)
    end = recording.now()
    rows = [(j, "coarse") for j in sorted(run.corrected, reverse=True)]
    begins = [times.get(j, start) for j, _ in rows]
    if has_head:
        rows, begins = [(window.last, "head"), *rows], [start, *begins]
    for (j, action), begin, stop in zip(rows, begins, [*begins[1:], end], strict=True):
        recording.add(j, action, "backward", begin, stop, window.m)
