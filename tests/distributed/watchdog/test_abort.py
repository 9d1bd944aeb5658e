"""A thread ends the waits in which others of its process stand."""

import threading

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
