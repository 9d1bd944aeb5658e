"""Ranks meet before they have groups: the absent are named, faults are everybody's, and meetings do not mix."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta

import torch.distributed as dist

from pararealize.distributed.meeting import meet
from pararealize.errors import AgreedError, DistributedError
from tests.ranks import on_ranks


def all_come():
    return [meet([0, 1, 2], timedelta(seconds=20)) for _ in range(2)]


def test_a_meeting_has_one_name_on_all_ranks_and_the_next_has_another():
    first, second, third = on_ranks(3, all_come)
    assert first == second == third
    assert len(set(first)) == 2


def one_is_absent():
    rank = dist.get_rank()
    if rank == 1:
        time.sleep(2)
        return ""
    try:
        meet([0, 1, 2], timedelta(seconds=0.5))
    except DistributedError as error:
        return str(error)
    return "met"


def test_who_does_not_come_is_named():
    first, _, third = on_ranks(3, one_is_absent)
    for rank, said in ((0, first), (2, third)):
        assert f"rank {rank} waited for the ranks [0, 1, 2] to distribute the network, and rank 1 did not" in said


def one_has_a_fault():
    try:
        meet([0, 1], timedelta(seconds=20), "timeout is 'x'" if dist.get_rank() else None)
    except AgreedError as error:
        return str(error), meet([0, 1], timedelta(seconds=20))
    return "met", ""


def test_a_fault_of_one_is_raised_on_all_and_they_may_meet_again():
    first, second = on_ranks(2, one_has_a_fault)
    assert first == second
    assert first[0] == "rank 1: timeout is 'x'"


def some_meet_before_all_do():
    """Ranks 0 and 1 meet twice, and once in vain, before all three do."""
    rank, limit = dist.get_rank(), timedelta(seconds=20)
    if rank == 0:
        with contextlib.suppress(DistributedError):
            meet([0, 1], timedelta(seconds=0.2))
    dist.barrier()
    names = [meet([0, 1], limit) for _ in range(2)] if rank < 2 else []
    return [*names, meet([0, 1, 2], limit)]


def test_meetings_of_other_ranks_and_meetings_in_vain_do_not_count():
    first, second, third = on_ranks(3, some_meet_before_all_do)
    assert first == second
    assert first[2:] == third
