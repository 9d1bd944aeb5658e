"""x_j and y_j of a rank's segments, and what comes from others -> z_j, passed on; and the gradients, the other way.

    in a row       receive z_i                            i: the last segment before this rank's
                   z_j = y_j + F^{j-1}(z_{j-1} - x_j)     for each of its segments, on leaves
                   send z_j                               on the last rank: the head
    within a sum   s = Σ (y_j - x_j) + Σ received sums    where F is the identity: nobody needs z_j
                   send s
    at its end     receive z_i of before the sum
                   z_j = z_i + s                          and on as in a row

Backward, what goes to other ranks leaves first. Who waits for whom, and why, stands in ``plan/communication.py``.
"""

from __future__ import annotations

import torch

from .rank import Own, Pass, leaf_of

__all__ = ["correct", "expect", "uncorrect"]


def expect(own: Own, run: Pass) -> None:
    """Say which messages of other ranks will come, before anything is computed."""
    peers = own.peers
    if peers.z_from is not None:
        name = f"z_{own.layout.runs[peers.z_from][1]}"
        run.z_coming = own.wire.expect(name, peers.z_from, own.tag(name), run.kinds)
    for rank in peers.sums_from:
        name = f"s_{own.layout.runs[rank][1]}"
        run.sums_coming.append(own.wire.expect(name, rank, own.tag(name), run.kinds))


def correct(own: Own, run: Pass) -> None:
    """``z_{j+1} = y_{j+1} + F^j(z_j - x_{j+1})``, equations (3a) to (3c), for this rank's segments, and the head."""
    peers = own.peers
    if peers.terms:
        run.total = _summed(own, run)
    if peers.sum_to is not None:
        assert run.total is not None
        _send_on(own, run, f"s_{own.last}", run.total, peers.sum_to)
        return
    z = run.y_leaf[1] if run.z_coming is None else _received(own, run)
    begin = max(own.first, 2)
    if run.total is not None:
        begin = peers.terms.stop
        with own.doing("coarse", begin - 1):
            z = run.corrected[begin - 1] = z + run.total
    for j in range(begin, own.last + 1):
        with own.doing("coarse", j):
            z = run.y_leaf[j] + own.call(f"F{j - 1}", z - run.x_leaf[j], *own.context(run, f"F{j - 1}"))
        run.corrected[j] = z
    run.z = z
    if peers.z_to is not None:
        _send_on(own, run, f"z_{own.last}", z, peers.z_to)
        return
    if own.n == 1 and run.graph:
        z = z.clone()  # the head may change it in place, and it is a leaf
    with own.doing("head", own.last):
        run.output = own.call("head", z, *own.context(run, "head"))


def _summed(own: Own, run: Pass) -> torch.Tensor:
    """Add up the differences of this rank and the sums of others."""
    total = received = None
    for j in own.peers.terms:
        with own.doing("difference", j):
            difference = run.y_leaf[j] - run.x_leaf[j]
            total = difference if total is None else total + difference
    assert total is not None
    for rank, incoming in zip(own.peers.sums_from, run.sums_coming, strict=True):
        with own.doing("receive sum", own.layout.runs[rank][1]):
            value = own.wire.take(incoming, run.kinds)
        if received is None:
            received = value
            continue
        with own.doing("sum", own.last):
            received = received + value
    if received is not None:
        run.sums_in = leaf_of(received) if run.graph else received
        with own.doing("sum", own.last):
            total = total + run.sums_in
    return total


def _received(own: Own, run: Pass) -> torch.Tensor:
    assert run.z_coming is not None
    with own.doing("receive", _before(own) + 1):
        z: torch.Tensor = own.wire.take(run.z_coming, run.kinds)
    run.z_in = leaf_of(z) if run.graph else z
    return run.z_in


def _before(own: Own) -> int:
    """The segment whose z comes in: the one before this rank's own, or before the sum that ends here."""
    assert own.peers.z_from is not None
    return own.layout.runs[own.peers.z_from][1]


def _send_on(own: Own, run: Pass, name: str, value: torch.Tensor, to: int) -> None:
    with own.doing("send sum" if name[0] == "s" else "send", own.last):
        own.wire.send(name, value, to, own.tag(name), run.kinds)
    if run.graph:
        run.gradient = own.wire.expect_back(name, to, own.tag(name) + 1, run.kinds)


# Backward ------------------------------------------------------------------------------------------------------------


def uncorrect(own: Own, run: Pass, loss: torch.Tensor | None) -> None:
    """Differentiate the head and this rank's coarse blocks, and send the gradients of what came.

    Args:
        own: the rank.
        run: its forward.
        loss: on the last rank, what to differentiate.
    """
    gradient = None
    if loss is None:
        assert run.gradient is not None
        to = own.peers.z_to
        whole = to is not None and to == own.rank + 1  # otherwise it is that of a sum
        with own.doing("receive" if whole else "receive sum", own.last, "backward"):
            (gradient,) = own.wire.take_back(run.gradient)
    if own.peers.sum_to is not None:
        assert run.total is not None
        _return_sums(own, run, gradient)
        with own.doing("coarse", own.last, "backward"):
            torch.autograd.backward(run.total, gradient)
        return
    assert run.z is not None
    if loss is None and run.z is run.y_leaf.get(1):
        run.z.grad = gradient
        return
    _differentiate(own, run, run.z if loss is None else loss, gradient)
    if own.peers.z_from is not None:
        assert run.z_in is not None
        j, name = _before(own), f"z_{_before(own)}"
        what = ("send sum", j) if own.peers.sums_from else ("send", own.first)
        with own.doing(*what, "backward"):
            own.wire.send_back(name, [run.z_in.grad], own.peers.z_from, own.tag(name) + 1, run.kinds)
    if run.sums_in is not None:
        _return_sums(own, run, run.sums_in.grad)


def _return_sums(own: Own, run: Pass, gradient: torch.Tensor | None) -> None:
    """Send the gradient of a sum to those that gave parts of it, first to those that have to pass it on."""
    for rank in reversed(own.peers.sums_from):
        j = own.layout.runs[rank][1]
        with own.doing("send sum", j, "backward"):
            own.wire.send_back(f"s_{j}", [gradient], rank, own.tag(f"s_{j}") + 1, run.kinds)


def _differentiate(own: Own, run: Pass, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
    own.watch.doing(f"{'head' if own.is_last else f'F^{own.last - 1}'} backward")
    if own.recording is None:
        torch.autograd.backward(value, gradient)
        return
    recording = own.recording
    times: dict[int, float] = {}  # one call differentiates all of it; hooks say when it passed each z_j
    for j, z in run.corrected.items():
        z.register_hook(lambda _, j=j: times.__setitem__(j, recording.now()))
    start = recording.now()
    torch.autograd.backward(value, gradient)
    end = recording.now()
    rows = [(j, "coarse") for j in sorted(run.corrected, reverse=True)]
    begins = [times.get(j, start) for j, _ in rows]
    if own.is_last:
        rows, begins = [(own.last, "head"), *rows], [start, *begins]
    for (j, action), begin, stop in zip(rows, begins, [*begins[1:], end], strict=True):
        recording.add(j, action, "backward", begin, stop)
