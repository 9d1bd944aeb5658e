"""A mesh is one network's ranks, perhaps in several copies; anything else is refused by name."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pararealize.distributed.process_groups import ProcessGroups, _own_limit
from pararealize.errors import DistributedError
from tests.message_queues import logged_as_nccl
from tests.rank_comparison import mesh_of
from tests.ranks import RanksFailed, on_ranks

LIMIT = timedelta(seconds=20)


def join(mesh, timeout, check=lambda: None):
    """The groups alone, without a network."""
    with ProcessGroups.joined(mesh, timeout, check) as groups:
        return groups


def refused(mesh):
    """The message of the error that a mesh ends in."""
    with pytest.raises(DistributedError) as caught:
        join(mesh, LIMIT)
    return str(caught.value)


def refusals():
    return refused(init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))), refused("cpu")


def test_what_is_no_mesh_of_a_network_is_refused():
    ((dimension, mesh),) = on_ranks(1, refusals)
    assert re.search("dimensions .'tp',.; pass one with mesh_dim_names=", dimension)
    assert re.search(r"mesh is str; pass torch\.distributed\.device_mesh\.init_device_mesh", mesh)


def test_it_needs_process_groups():
    with pytest.raises(DistributedError, match=r"torch\.distributed is not initialised; start with torchrun"):
        join(None, LIMIT)


def members():
    """The ranks of each group of this rank, in two copies of a network over two ranks."""
    groups = join(mesh_of(2, 2), LIMIT)
    found = (groups.everyone, groups.parareal, groups.control, groups.dp)
    return groups.rank, [dist.get_process_group_ranks(group) for group in found]


def test_each_rank_is_with_those_of_its_network_and_those_of_its_segments():
    assert on_ranks(4, members) == [
        (0, [[0, 1, 2, 3], [0, 1], [0, 1], [0, 2]]),
        (1, [[0, 1, 2, 3], [0, 1], [0, 1], [1, 3]]),
        (0, [[0, 1, 2, 3], [2, 3], [2, 3], [0, 2]]),
        (1, [[0, 1, 2, 3], [2, 3], [2, 3], [1, 3]]),
    ]


def on_two_meshes():
    """Ranks 0 and 1 have groups of their own, several times, before all three ranks have some."""
    two, three = (DeviceMesh("cpu", ranks, mesh_dim_names=("parareal",)) for ranks in ([0, 1], [0, 1, 2]))
    rank = dist.get_rank()
    few = [join(two, LIMIT) for _ in range(2)] if rank < 2 else []
    everyone = join(three, LIMIT)
    sums = []
    for groups in (everyone, *few, everyone):
        total = torch.ones(1)
        dist.all_reduce(total, group=groups.parareal)
        sums.append(int(total))
    return sums


def test_groups_on_meshes_of_different_ranks_find_each_other():
    assert on_ranks(3, on_two_meshes) == [[3, 2, 2, 3], [3, 2, 2, 3], [3, 3]]


def odd_timeouts():
    said = []
    for timeout in (None, "10", -1.0, float("nan"), float("inf"), True, timedelta(0)):
        with pytest.raises(DistributedError) as caught:
            join(mesh_of(2), timeout if dist.get_rank() else LIMIT)
        said.append(str(caught.value))
    return said


def test_a_timeout_that_is_none_is_an_error_on_every_rank():
    first, second = on_ranks(2, odd_timeouts)
    assert first == second
    assert all(re.match(r"rank 1: timeout is .*; pass seconds above 0", said) for said in first)


def test_they_end_without_a_trace_and_count_for_none_of_the_users():
    """torch gives the user's next group the number of groups made before, which has to be the same on all ranks."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        before, count = set(c10d._world.pg_map), c10d._world.group_count
        for fails in (False, True):
            with contextlib.suppress(ZeroDivisionError), ProcessGroups.joined(mesh, 20.0) as groups:
                assert set(c10d._world.pg_map) > before
                assert c10d._world.group_count == count
                assert 1 / (not fails)
            groups.end(everyone_does=False)  # which an error has done already
            groups.end(everyone_does=True)
            assert set(c10d._world.pg_map) == before
    finally:
        dist.destroy_process_group()


def set_up(way):
    """Something befalls the second of three ranks when all have met."""
    rank = dist.get_rank()
    try:
        with ProcessGroups.joined(mesh_of(3), 3.0 if way == "hangs" else 60.0) as groups:
            groups.watch.doing("copying its modules")
            if rank == 1 and way == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1 and way == "hangs":
                time.sleep(5)
            if rank == 1 and way == "fails":
                raise ValueError("no memory")
            groups.watch.waiting("the others")
            dist.barrier(groups.everyone)
    except (DistributedError, ValueError) as error:
        if way == "dies":
            raise
        return type(error).__name__, str(error)
    return "nothing", ""


@pytest.mark.parametrize("way, told", [
    ("fails", "rank 1 failed in 'copying its modules': ValueError: no memory"),
    ("hangs", "rank 1 has not answered for 3 s: it was last seen in 'copying its modules'"),
])  # fmt: skip
def test_a_failure_while_ranks_are_set_up_is_named(way, told):
    first, second, third = on_ranks(3, set_up, way)
    for name, text in (first, third):
        assert name == "RankError"
        assert text.startswith(told)
    assert second[0] == ("ValueError" if way == "fails" else "RankError")


def test_a_death_while_ranks_are_set_up_is_named():
    with pytest.raises(RanksFailed) as caught:
        on_ranks(3, set_up, "dies")
    assert "rank 1: died with exit code -9" in str(caught.value)
    assert str(caught.value).count("RankError: rank 1 died (its process is gone") == 2


def directed():
    """The groups where messages have no tags, and the first call of each, which all its ranks make."""
    with logged_as_nccl() as log:
        groups = join(mesh_of(2, 2), LIMIT)
    names = [c10d._world.pg_names[group] for group in (groups.parareal, groups.up, groups.down, groups.dp)]
    ranks = [dist.get_process_group_ranks(group) for group in (groups.up, groups.down)]
    calls = [(names.index(operation.group), operation.kind) for operation in log.operations]
    groups.end(everyone_does=True)
    return len(set(names)), ranks, calls, any(g in c10d._world.pg_map for g in (groups.up, groups.down))


def test_messages_without_tags_have_a_group_a_direction_and_groups_begin_with_a_sum():
    """NCCL's communicator of a group is made in its first call, for which all ranks have to come."""
    for rank, (count, ranks, calls, left) in enumerate(on_ranks(4, directed)):
        assert count == 4
        assert ranks == [[0, 1] if rank < 2 else [2, 3]] * 2
        assert calls == [(0, "all_reduce"), (3, "all_reduce")]
        assert not left


def test_nccls_own_clock_is_slower_than_the_watch():
    """It starts when a receive is posted, and would end processes that are not at fault."""
    assert _own_limit("gloo", LIMIT) == LIMIT
    assert _own_limit("cpu:gloo,cuda:nccl", LIMIT) == timedelta(minutes=30)
    assert _own_limit("nccl", timedelta(hours=1)) == timedelta(hours=10)
