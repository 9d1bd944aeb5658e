"""Sums over ranks of identities compute what one process computes; a rank that fails within one is named."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from pararealize.distributed.activity import Activity
from pararealize.distributed.messages.point_to_point import PointToPoint
from pararealize.errors import DistributedError
from pararealize.plan.timeline import Timeline
from tests.rank_comparison import (
    TIGHT,
    accumulate,
    check,
    converted,
    distance,
    follow,
    furthest,
    largest,
    mean_square,
    mesh_of,
)
from tests.ranks import RanksFailed, on_ranks


def sums(stage):
    """The ranks that a stage's sums come from and go to."""
    peers = stage.rank_setup.partition.windows[-1].peers[stage.rank]
    return peers.sums_from, peers.sum_to


def together(cases):
    """Steps and evaluation in sums, beside one process, for networks with changes and ways to distribute them."""
    found = {}
    for name, changes, how in cases:
        found[name] = follow([name], changes, reduce_linear=True, **how)[name]
    return found


IN_SUMS = [
    ("tied embedding", {"n": 3}, {}),
    ("alike", {"n": 6}, {"assignment": [1, 3, 2]}),
    ("perceptron, an empty stem", {"n": 5}, {"checkpoint_activations": True}),
    ("pre-activation, linear coarse", {"n": 9}, {"assignment": [1, 1, 7]}),
    ("windows behind a sequential block", {}, {}),
    ("windows, linear coarse", {"n": 4, "windows": 2}, {"assignment": [1, 2, 1], "checkpoint_activations": True}),
]


def deep():
    """Five ranks, and so two rounds, beside one process and beside a row; what is sent where."""
    net, batch = converted("alike", n=5)
    row, summed = (net.distribute(mesh_of(5), timeout=30, reduce_linear=way) for way in (False, True))
    inputs = batch(5)
    loss = mean_square(net(inputs), torch.ones(5, 8))
    loss.backward()
    found = []
    for stage in (row, summed):
        sent: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PointToPoint, "isend", spying(PointToPoint.isend, sent))
            ours = stage.step(inputs, target=torch.ones(5, 8), loss_fn=mean_square)
        assert max(distance(ours, loss), furthest(stage, net, "grad")) < TIGHT
        found.append((sums(stage), sent))
    return found


def spying(send, sent):
    def spy(self, name, tensor, to, tag):
        sent.append(f"{name} to {to}")
        send(self, name, tensor, to, tag)

    return spy


def test_five_ranks_send_in_two_rounds():
    back = "the gradient of"
    row, summed = zip(*on_ranks(5, deep), strict=True)
    assert [ends for ends, _ in row] == [((), None)] * 5
    assert [ends for ends, _ in summed] == [((), None), ((), 2), ((1,), 4), ((), 4), ((3, 2), None)]
    assert [sent for _, sent in row] == [
        ["z_1 to 1"],
        ["z_2 to 2", f"{back} z_1 to 0"],
        ["z_3 to 3", f"{back} z_2 to 1"],
        ["z_4 to 4", f"{back} z_3 to 2"],
        [f"{back} z_4 to 3"],
    ]
    assert [sent for _, sent in summed] == [
        ["z_1 to 4"],
        ["s_2 to 2"],
        ["s_3 to 4", f"{back} s_2 to 1"],
        ["s_4 to 4"],
        [f"{back} z_1 to 0", f"{back} s_3 to 2", f"{back} s_4 to 3"],
    ]


def around():
    """Accumulation and clipping, mixed precision and a scaler, on three ranks in sums."""
    found = {"accumulated": accumulate("alike", dp=False, n=6)}
    net, batch = converted("alike", n=3)
    stage = net.distribute(mesh_of(3), timeout=30, reduce_linear=True)
    assert sums(stage) == [((), None), ((), 2), ((1,), None)][stage.rank]
    scaler = ShardedGradScaler("cpu", init_scale=2.0**10, process_group=stage.group)
    inputs = batch(4)
    mean_square(net(inputs), torch.ones(4, 8)).backward()
    stage.step(inputs, target=torch.ones(4, 8), loss_fn=mean_square, scaler=scaler)
    scaler.unscale_(torch.optim.SGD(stage.parameters()))
    found["scaled"] = {"grad": furthest(stage, net, "grad")}
    with stage.record() as recording:
        stage.step(inputs, target=torch.ones(4, 8), loss_fn=mean_square)
    net, batch = converted("mask from the inputs", n=3, coarse="linear")
    net, inputs = net.float(), batch(4)
    stage = net.distribute(mesh_of(3), timeout=30, reduce_linear=True)
    with torch.autocast("cpu", torch.bfloat16):
        mean_square(net(inputs), torch.zeros(())).backward()
        stage.step(inputs, target=torch.zeros(()), loss_fn=mean_square)
    found["in_bfloat16"] = {"grad": furthest(stage, net, "grad")}
    return found, recording.actions


def check_timeline(timeline):
    """What three ranks recorded: the sum's actions, each after what it needs, and a path from end to beginning."""
    needs = {str(a): {str(timeline.actions[i]) for i in a.after} for a in timeline.actions}
    assert needs["d2"] == {"g2"}
    assert needs["t2"] == {"d2"}
    assert needs["s3.1"] == {"d3", "t2"}
    assert needs["F2"] == {"s3.1", "z1"}
    assert needs["head"] == {"F2"}
    assert needs["z1'"] == needs["z2'"] == {"head'"}
    assert needs["g1'"] == {"z1'"}
    assert needs["g2'"] == {"z2'"}
    sent = {str(a): (a.rank, a.to) for a in timeline.actions if a.kind == "transfer"}
    assert sent == {"t2": (1, 2), "z1": (0, 2), "z1'": (2, 0), "z2'": (2, 1)}
    assert str(timeline.critical_path[0]) in ("stem", "C2", "C3")


def average():
    windows = accumulate("windows behind a sequential block", dp=True)
    return {"averaged": accumulate("alike", dp=True, n=3), "windows": windows}


def test_averages_over_replicas_in_sums():
    assert largest(on_ranks(6, average)) == {}


def refuse():
    net, _ = converted("alike", n=3)
    with pytest.raises(DistributedError) as ways:
        net.distribute(mesh_of(3), timeout=20, reduce_linear=dist.get_rank() > 0)
    with pytest.raises(DistributedError, match="reduce_linear is 'always'; pass True or False or 'auto'"):
        net.distribute(mesh_of(3), timeout=20, reduce_linear="always")
    return str(ways.value), sums(net.distribute(mesh_of(3), timeout=20))


def all_of_it():
    return together(IN_SUMS), around(), refuse()


def test_three_ranks_in_sums_compute_what_one_process_does():
    """Steps and evaluation; accumulation, clipping, a scaler and autocast; what the ranks choose and refuse."""
    followed, kept, refused = zip(*on_ranks(3, all_of_it), strict=True)
    messages, chosen = zip(*refused, strict=True)
    check(followed, [name for name, *_ in IN_SUMS])
    kept, rows = zip(*kept, strict=True)
    assert largest(kept) == {}
    check_timeline(Timeline.recorded([row for some in rows for row in some], model="alike", n=3))
    for message in messages:
        assert "send sums (reduce_linear) is [[None, None, None]] on rank 0, [[None, 2, None]] on rank 1, 2" in message
    assert chosen == (((), None), ((), 2), ((1,), None))


def struck(kind, culprit, action, direction):
    """Train until, in the third step, something befalls a rank at the beginning of an action."""
    net, batch = converted("alike", n=6)
    stage = net.distribute(mesh_of(3), timeout=3, assignment=[2, 2, 2], reduce_linear=True)
    plain, step = Activity.during, 0

    def during(self, what, j, way="forward", m=0):
        if (step, stage.rank, what, way) == (3, culprit, action, direction):
            os.kill(os.getpid(), signal.SIGKILL) if kind == "kill" else time.sleep(1000)
        return plain(self, what, j, way, m)

    Activity.during = during
    while True:
        step += 1
        stage.step(batch(2), target=torch.zeros(()), loss_fn=mean_square)


@pytest.mark.parametrize(
    "kind, culprit, action, direction",
    [
        ("kill", 1, "send sum", "forward"),
        ("kill", 2, "receive sum", "forward"),
        ("kill", 1, "receive sum", "backward"),
        ("hang", 1, "difference", "forward"),
    ],
)
def test_a_rank_that_fails_within_a_sum_is_named(kind, culprit, action, direction):
    with pytest.raises(RanksFailed) as failed:
        on_ranks(3, struck, kind, culprit, action, direction, seconds=30)
    faults = str(failed.value).split("\nrank ")
    for rank, fault in enumerate(faults):
        if rank == culprit:
            assert ("exit code -9" if kind == "kill" else "exit code 1") in fault
        else:
            first = 2 * culprit + 1
            assert f"RankError: rank {culprit} (segments {first} to {first + 1}" in fault, fault
