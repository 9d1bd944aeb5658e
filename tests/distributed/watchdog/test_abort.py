"""A thread ends the waits in which others of its process stand."""

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from pararealize.distributed.watchdog.abort import break_waits
from tests.ranks import on_ranks


def first_alone():
    """The second rank stays until the first has been interrupted, so that it is not its leaving that ends the wait."""
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 1:
        store.wait(["interrupted"])
        return "there"
    thread = threading.Timer(0.3, break_waits)
    thread.start()
    with pytest.raises(RuntimeError):
        dist.recv(torch.empty(1), 1)
    thread.join()
    store.set("interrupted", "yes")
    return "interrupted"


def test_waits_end_long_before_their_time_out():
    assert on_ranks(2, first_alone, seconds=30) == ["interrupted", "there"]


def test_an_abort_that_blocks_holds_up_neither_the_watch_nor_other_groups(monkeypatch):
    """``abort()`` of NCCL may wait for the device; asked again meanwhile, it is not begun twice."""
    goes_on, aborted = threading.Event(), []

    class Group:
        def __init__(self, name, blocks):
            self.name, self.blocks = name, blocks

        def abort(self):
            aborted.append(self.name)
            if self.blocks:
                goes_on.wait(20)
            over[self.name].set()

    groups = [Group("a", True), Group("b", False)]
    over = {group.name: threading.Event() for group in groups}
    world = SimpleNamespace(_world=SimpleNamespace(pg_map=dict.fromkeys(groups)))
    monkeypatch.setattr("pararealize.distributed.watchdog.abort.c10d", world)
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
    break_waits()
    assert over["b"].wait(10)
    break_waits()
    assert aborted.count("a") == 1
    goes_on.set()
    assert over["a"].wait(10)
