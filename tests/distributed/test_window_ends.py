"""What one window of a network ends with, on every rank of the next: which messages, in which order, and which bits."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed as dist

from pararealize.distributed.activity import Activity
from pararealize.distributed.checkpoint.state import gather_state_dict
from pararealize.distributed.messages import message_order
from pararealize.distributed.messages.point_to_point import PointToPoint
from pararealize.plan.simulation import simulate
from pararealize.plan.timeline import Timeline
from tests.rank_comparison import TIGHT, converted, distance, furthest, mean_square, mesh_of
from tests.ranks import RanksFailed, on_ranks

NAME = "windows behind a sequential block"  # of n = 3: 1, 3, 3 and 2 segments


def spied(stage, inputs):
    """A step, and what this rank sends to and expects from each of the others, in order."""
    order = []
    send, receive = PointToPoint.isend, PointToPoint.irecv

    def isend(self, name, tensor, to, tag):
        order.append((to, "send", tag))
        return send(self, name, tensor, to, tag)

    def irecv(self, tensor, peer, tag):
        order.append((peer, "receive", tag))
        return receive(self, tensor, peer, tag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PointToPoint, "isend", isend)
        patch.setattr(PointToPoint, "irecv", irecv)
        loss = stage.step(inputs, target=torch.ones(4, 8), loss_fn=mean_square)
    return loss, order


def ends():
    """Steps in a row, in sums among few ranks, in sums of the backend, and as over NCCL; beside one process."""
    found = {}
    for way, reduce_linear, direct, tags in (
        ("row", False, 4, True),
        ("exchange", True, 4, True),
        ("all-reduce", True, 0, True),
        ("row, no tags", False, 4, False),
        ("all-reduce, no tags", True, 4, False),
    ):
        message_order._DIRECT = direct
        net, batch = converted(NAME)
        stage = net.distribute(mesh_of(3), timeout=30, reduce_linear=reduce_linear)
        stage.rank_setup.channel.keeps_tags_apart = tags
        torch.manual_seed(3)
        inputs, order, losses, gradients = batch(4), [], [], []
        expected = mean_square(net(inputs), torch.ones(4, 8))
        expected.backward()
        for _ in range(3):
            stage.zero_grad()
            loss, order = spied(stage, inputs)
            losses.append(loss)
            gradients.append([parameter.grad for parameter in stage.parameters()])
        assert max(distance(losses[0], expected), furthest(stage, net, "grad")) < TIGHT, way
        assert all(map(torch.equal, gradients[1], gradients[2])), way
        assert torch.equal(losses[1], losses[2])
        found[way] = order
        if way != "row" and tags:
            with stage.record() as recording:
                stage.step(inputs, target=torch.ones(4, 8), loss_fn=mean_square)
            found[f"{way}, recorded"] = recording.actions, net.plan
    whole = gather_state_dict(stage, everywhere=True)
    assert whole.keys() == net.state_dict().keys()
    assert all(torch.equal(whole[key], value) for key, value in net.state_dict().items())
    return found | {"mixed": mixed()}


def mixed():
    """Under autocast the first rank's part is of another type than the others' differences."""
    net, batch = converted(NAME)
    net, inputs = net.float(), batch(4).float()
    stage = net.distribute(mesh_of(3), timeout=30, reduce_linear=True)
    with torch.autocast("cpu", torch.bfloat16):
        mean_square(net(inputs), torch.zeros(())).backward()
        for _ in range(2):
            stage.zero_grad()
            stage.step(inputs, target=torch.zeros(()), loss_fn=mean_square)
    return furthest(stage, net, "grad")


def test_windows_end_alike_in_a_row_in_sums_and_without_tags():
    results = on_ranks(3, ends)
    for rank, found in enumerate(results):
        assert found["mixed"] < 0.02
        for way in ("row, no tags", "all-reduce, no tags"):  # the two ends of a pair, in one order: NCCL knows no other
            for peer in range(3):
                ours = [(kind, tag) for to, kind, tag in found[way] if to == peer]
                theirs = [(kind, tag) for to, kind, tag in results[peer][way] if to == rank]
                other = {"send": "receive", "receive": "send"}
                assert ours == [(other[kind], tag) for kind, tag in theirs], (way, rank, peer)
    sent = [len([1 for _, kind, _ in found["exchange"] if kind == "send"]) for found in results]
    # w_1 from rank 0 to two, its gradient back; parts of w_2, w_3 and their gradients from each to two; z_4_1 and back
    assert sent == [2 + 8, 1 + 8 + 1, 1 + 8 + 1]
    for way in ("exchange", "all-reduce"):
        rows, plans = zip(*(found[f"{way}, recorded"] for found in results), strict=True)
        plan = plans[0]
        timeline = Timeline.recorded([row for some in rows for row in some], model="deep", n=3, source="stem")
        predicted = simulate(plan, reduce_linear=True)
        for rank in range(3):
            ours = [str(a) for a in timeline.of(rank) if a.seconds > 0]
            theirs = [str(a) for a in predicted.of(rank) if str(a)[0] != "C" or not str(a).endswith("'")]
            assert [name for name in theirs if name in ours] == [name for name in ours if name in theirs], rank
            assert {name for name in theirs if name[0] in "gFd"} == {name for name in ours if name[0] in "gFd"}
        assert {str(a) for a in timeline.actions if a.name[0] == "a"} == {
            str(a) for a in predicted.actions if a.name[0] == "a"
        }


def struck():
    """In the third step, a rank dies in the second window."""
    net, batch = converted("windows, linear coarse", n=3, windows=2)
    stage = net.distribute(mesh_of(3), timeout=3)
    plain, step = Activity.during, 0

    def during(self, what, j, way="forward", m=0):
        if (step, dist.get_rank(), what, way, m) == (3, 1, "fine", "forward", 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, what, j, way, m)

    Activity.during = during
    while True:
        step += 1
        stage.step(batch(2), target=torch.zeros(()), loss_fn=mean_square)


def test_a_rank_that_dies_in_the_second_window_is_named():
    with pytest.raises(RanksFailed) as failed:
        on_ranks(3, struck, seconds=30)
    first, second, third = str(failed.value).split("\nrank ")
    assert "exit code -9" in second
    for fault in (first, third):
        assert "RankError: rank 1 (segment 2 of 2 windows" in fault, fault
