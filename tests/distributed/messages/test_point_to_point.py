"""Tensors and objects between ranks: order, tags, exchanges, and waits that end."""

from __future__ import annotations

import os
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from pararealize.distributed.messages import point_to_point
from pararealize.distributed.messages.point_to_point import PointToPoint
from pararealize.distributed.watchdog.heartbeat import Failure
from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import DistributedError, RankError
from tests.ranks import on_ranks


def channel_of(seconds=20):
    who = [f"rank {rank}" for rank in range(dist.get_world_size())]
    watch = Watch(dist.group.WORLD, who=who, timeout=20.0)
    return PointToPoint(
        dist.group.WORLD, dist.group.WORLD, torch.device("cpu"), timedelta(seconds=seconds), who.__getitem__, watch
    )


def crossing():
    """Both ranks send before they receive; receives are posted in the opposite order of the sends."""
    channel = channel_of()
    other = 1 - channel.rank
    for tag in (2, 4):
        channel.isend(f"v{tag}", torch.full((3, 2), float(tag + channel.rank)).T, other, tag)
    tensors = {tag: torch.empty(2, 3) for tag in (4, 2)}
    works = {tag: channel.irecv(tensor, other, tag) for tag, tensor in tensors.items()}
    for tag in (2, 4):
        channel.wait_for_message(works[tag], f"v{tag}", other)
    channel.flush()
    fact = None
    if channel.rank == 0:
        channel.send_object("a fact", {"rank": 0}, 1)
    else:
        fact = channel.receive_object("a fact", 0)
    return tensors[2].unique().tolist(), tensors[4].unique().tolist(), fact


def test_tags_tell_messages_apart() -> None:
    assert on_ranks(2, crossing) == [([3.0], [5.0], None), ([2.0], [4.0], {"rank": 0})]


def exchanged():
    channel = channel_of()
    if channel.rank == 1:
        return None
    return [tensor.item() for tensor in channel.exchange(torch.tensor(10.0 + channel.rank), (0, 2))]


def test_some_ranks_exchange_without_the_others() -> None:
    assert on_ranks(3, exchanged) == [[10.0, 12.0], None, [10.0, 12.0]]


def yielding():
    """Sends on CPUs, then one from a device that needs no thread of the host, with a note of each yield."""
    channel, yields = channel_of(), []
    with mock.patch.object(point_to_point, "_yield", side_effect=lambda: yields.append(len(channel._unfinished))):
        for number in range(3):
            channel._waits_on_host = number < 2
            if channel.rank == 0:
                channel.isend("a tensor", torch.ones(1), 1, 2 * number)
            else:
                channel.wait(channel.irecv(torch.ones(1), 0, 2 * number), "a tensor", 0)
        channel._waits_on_host = True
        channel.flush()
    return yields


def test_a_rank_lets_the_thread_that_sends_run_once_a_message_was_begun() -> None:
    """Without it, ranks on one core each sent what a receiver had asked for behind all that they computed next."""
    assert on_ranks(2, yielding) == [[1, 2], []]
    assert point_to_point._yield is os.sched_yield


def confirmed():
    """Every collective call asks first whether all ranks are at the same step; messages between two do not."""
    channel = channel_of()
    calls = []
    channel.confirm = lambda: calls.append("confirm")
    channel.wait(channel.broadcast(torch.ones(1), 0), "a value", 0)
    channel.all_reduce("a sum", torch.ones(1))
    channel.exchange(torch.ones(1), (0, 1))
    channel.broadcast_object("an object", 1, 0)
    count = len(calls)
    if channel.rank == 0:
        channel.isend("a tensor", torch.ones(1), 1, 2)
        channel.flush()
    else:
        channel.wait_for_message(channel.irecv(torch.ones(1), 0, 2), "a tensor", 0)
    return count, len(calls), channel.keeps_tags_apart


def test_collective_calls_are_confirmed_first() -> None:
    assert on_ranks(2, confirmed) == [(4, 4, True)] * 2


def in_vain():
    channel = channel_of(seconds=1)
    store = dist.distributed_c10d._get_default_store()
    if channel.rank == 1:
        store.wait(["over"])
        return ""
    with pytest.raises(DistributedError) as error:
        channel.wait(channel.irecv(torch.empty(1), 1, 2), "z_2", 1)
    store.set("over", "yes")
    return str(error.value)


def test_a_wait_ends_and_names_both_ranks() -> None:
    message, _ = on_ranks(2, in_vain)
    assert message.startswith("rank 0 failed waiting for z_2 from rank 1 within 1 s: ")
    assert message.endswith("pass distribute(..., timeout=) more seconds where a step takes longer")


class Device:
    """A device whose event comes after so many looks at it, and another rank that fails after as many."""

    def __init__(self, looks, fails_after=None, watch=None):
        self.looks, self.fails_after, self.watch = looks, fails_after, watch

    def Event(self):
        return self

    def record(self):
        pass

    def query(self):
        self.looks -= 1
        if self.fails_after is not None and self.looks <= self.fails_after:
            self.watch._failure = Failure(rank=1, message="rank 1 died")
        return self.looks <= 0


class Coming:
    def __init__(self):
        self.waited, self.has_come = False, False

    def wait(self):
        self.waited = True

    def is_completed(self):
        return self.has_come


def on_a_device(monkeypatch, device, watch):
    """A channel of this process alone, as it is on a GPU, where waits hold up a stream."""
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 0)
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    monkeypatch.setattr("pararealize.distributed.messages.point_to_point.matches_by_tag", lambda *_: False)
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    return PointToPoint(None, None, torch.device("cuda"), timedelta(seconds=5), "rank {}".format, watch)


@pytest.mark.parametrize("fails_after", [None, 3, 0])
def test_on_a_gpu_a_call_ends_when_the_device_has_done_it_or_another_rank_failed(monkeypatch, fails_after):
    """Before, the watch sees what the stream waits for; aborted kernels end too, and what they leave is no value."""
    watch = Watch(dist.HashStore(), rank=0, who=["rank 0"], timeout=5.0, peers=[0, 0])
    watch._peers = [0, 1]
    device = Device(6, fails_after, watch)
    channel = on_a_device(monkeypatch, device, watch)
    works = [Coming(), Coming()]
    channel.wait_for_message(works[0], "z_1", 1)
    channel.wait(works[1], "the loss", 1)
    assert all(work.waited for work in works)
    assert watch._statuses()[0].doing == "z_1"
    assert watch._statuses()[0].waits
    works[0].has_come = True
    status = watch._statuses()[0]
    assert (status.doing, status.peer, dict(status.took)) == ("the loss", 1, {1: 1})
    if fails_after is None:
        channel.settle()
        assert device.looks == 0
        assert not watch._statuses()[0].waits
    else:
        with pytest.raises(RankError, match="rank 1 died"):
            channel.settle()
        assert device.looks == (fails_after or 0)
