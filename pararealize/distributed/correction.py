"""x_j and y_j of a rank's segments, and what comes from others -> z_j, passed on; and the gradients, the other way.

    in a row       receive z_i                            i: the last segment before this rank's
                   z_j = y_j + F^{j-1}(z_{j-1} - x_j)     for each of its segments, on leaves
                   send z_j                               on the last rank: the head
    within a sum   s = Σ (y_j - x_j) + Σ received sums    where F is the identity: nobody needs z_j
                   send s
    at its end     receive z_i of before the sum
                   z_j = z_i + s                          and on as in a row

Backward, what goes to other ranks leaves first, so that these can differentiate their segments at the same time. Who
passes what to whom is decided in :mod:`pararealize.plan.peers`.
"""

from __future__ import annotations

import torch

from .activity import Activity
from .autograd_cuts import as_leaf
from .messages.message_order import StepMessages
from .rank_segments import RankSegments, SegmentValues

__all__ = ["correct", "differentiate_correction", "expect_corrections"]


def expect_corrections(segments: RankSegments, run: SegmentValues, messages: StepMessages) -> None:
    """Post the receives of z and of sums, before anything is computed."""
    peers = segments.peers
    if peers.z_from is not None:
        run.z_pending = messages.expect(f"z_{_last_of(segments, peers.z_from)}", peers.z_from)
    for rank in peers.sums_from:
        run.sums_pending.append(messages.expect(f"s_{_last_of(segments, rank)}", rank))


def correct(segments: RankSegments, run: SegmentValues, messages: StepMessages, activity: Activity) -> None:
    """``z_{j+1} = y_{j+1} + F^j(z_j - x_{j+1})``, equations (3a) to (3c), for this rank's segments, and the head."""
    peers = segments.peers
    if peers.terms:
        run.total = _summed(segments, run, messages, activity)
    if peers.sum_to is not None:
        assert run.total is not None
        with activity.during("send sum", segments.last):
            messages.send(f"s_{segments.last}", run.total, peers.sum_to)
        if run.graph:
            run.gradient_pending = messages.expect_gradients(f"s_{segments.last}", peers.sum_to)
        return
    if run.z_pending is None:
        z = run.y_leaf[1]
    else:
        assert peers.z_from is not None
        with activity.during("receive", _last_of(segments, peers.z_from) + 1):
            z = messages.receive(run.z_pending)
        z = run.z_leaf = as_leaf(z) if run.graph else z
    begin = max(segments.first, 2)
    if run.total is not None:
        begin = peers.terms.stop
        with activity.during("coarse", begin - 1):
            z = run.corrected[begin - 1] = z + run.total
    for j in range(begin, segments.last + 1):
        with activity.during("coarse", j):
            z = run.y_leaf[j] + segments.call("coarse", j - 1, run.values, z - run.x_leaf[j])
        run.corrected[j] = z
    run.z = z
    if peers.z_to is not None:
        with activity.during("send", segments.last):
            messages.send(f"z_{segments.last}", z, peers.z_to)
        if run.graph:
            run.gradient_pending = messages.expect_gradients(f"z_{segments.last}", peers.z_to)
        return
    if not run.corrected and run.graph:
        z = z.clone()  # n = 1: the head may change it in place, and it is a leaf
    with activity.during("head", segments.last):
        run.output = segments.call("head", 0, run.values, z)


def _summed(segments: RankSegments, run: SegmentValues, messages: StepMessages, activity: Activity) -> torch.Tensor:
    """Add up the differences of this rank and the sums of others."""
    total = received = None
    for j in segments.peers.terms:
        with activity.during("difference", j):
            difference = run.y_leaf[j] - run.x_leaf[j]
            total = difference if total is None else total + difference
    assert total is not None
    for rank, pending in zip(segments.peers.sums_from, run.sums_pending, strict=True):
        with activity.during("receive sum", _last_of(segments, rank)):
            value = messages.receive(pending)
        if received is None:
            received = value
            continue
        with activity.during("sum", segments.last):
            received = received + value
    if received is not None:
        run.sums_leaf = as_leaf(received) if run.graph else received
        with activity.during("sum", segments.last):
            total = total + run.sums_leaf
    return total


def _last_of(segments: RankSegments, rank: int) -> int:
    """The last segment of another rank, whose number its z or its sum has."""
    return segments.partition.runs[rank][1]


# Backward ------------------------------------------------------------------------------------------------------------


def differentiate_correction(
    segments: RankSegments, run: SegmentValues, messages: StepMessages, activity: Activity, loss: torch.Tensor | None
) -> None:
    """Differentiate the head and this rank's coarse blocks, and send the gradients of what came.

    Args:
        segments: of the rank.
        run: what its forward pass kept.
        messages: of the step.
        activity: is told of each action.
        loss: on the last rank, what to differentiate.
    """
    peers = segments.peers
    gradient = None
    if loss is None:
        assert run.gradient_pending is not None
        whole = peers.z_to == segments.rank + 1  # otherwise it is that of a sum
        with activity.during("receive" if whole else "receive sum", segments.last, "backward"):
            (gradient,) = messages.receive_gradients(run.gradient_pending)
    if peers.sum_to is not None:
        assert run.total is not None
        _send_gradient_of_sums(segments, messages, activity, gradient)
        with activity.during("coarse", segments.last, "backward"):
            torch.autograd.backward(run.total, gradient)
        return
    assert run.z is not None
    if loss is None and run.z is run.y_leaf.get(1):
        run.z.grad = gradient
        return
    _differentiate(segments, run, activity, run.z if loss is None else loss, gradient)
    if peers.z_from is not None:
        assert run.z_leaf is not None
        j = _last_of(segments, peers.z_from)
        action = ("send sum", j) if peers.sums_from else ("send", segments.first)
        with activity.during(*action, "backward"):
            messages.send_gradients(f"z_{j}", [run.z_leaf.grad], peers.z_from)
    if run.sums_leaf is not None:
        _send_gradient_of_sums(segments, messages, activity, run.sums_leaf.grad)


def _send_gradient_of_sums(
    segments: RankSegments, messages: StepMessages, activity: Activity, gradient: torch.Tensor | None
) -> None:
    """Send the gradient of a sum to those that gave parts of it, first to those that have to pass it on."""
    for rank in reversed(segments.peers.sums_from):
        j = _last_of(segments, rank)
        with activity.during("send sum", j, "backward"):
            messages.send_gradients(f"s_{j}", [gradient], rank)


def _differentiate(
    segments: RankSegments, run: SegmentValues, activity: Activity, value: torch.Tensor, gradient: torch.Tensor | None
) -> None:
    """One backward call over head and coarse blocks; a recording has a row for each, told apart by hooks."""
    activity.watch.doing(f"{'head' if segments.owns_head else f'F^{segments.last - 1}'} backward")
    if activity.recording is None:
        torch.autograd.backward(value, gradient)
        return
    recording = activity.recording
    times: dict[int, float] = {}  # when the call passed each z_j
    for j, z in run.corrected.items():
        z.register_hook(lambda _, j=j: times.__setitem__(j, recording.now()))
    start = recording.now()
    torch.autograd.backward(value, gradient)
    end = recording.now()
    rows = [(j, "coarse") for j in sorted(run.corrected, reverse=True)]
    begins = [times.get(j, start) for j, _ in rows]
    if segments.owns_head:
        rows, begins = [(segments.last, "head"), *rows], [start, *begins]
    for (j, action), begin, stop in zip(rows, begins, [*begins[1:], end], strict=True):
        recording.add(j, action, "backward", begin, stop)
