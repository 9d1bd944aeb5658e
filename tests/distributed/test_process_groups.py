"""A mesh is one network's ranks, perhaps in several copies; anything else is refused by name."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pararealize.distributed.process_groups import ProcessGroups
from pararealize.errors import DistributedError
from tests.rank_comparison import mesh_of
from tests.ranks import on_ranks

LIMIT = timedelta(seconds=20)


def refused(mesh):
    """The message of the error that a mesh ends in."""
    with pytest.raises(DistributedError) as caught:
        ProcessGroups.of(mesh, LIMIT)
    return str(caught.value)


def refusals():
    return refused(init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))), refused("cpu")


def test_what_is_no_mesh_of_a_network_is_refused():
    ((dimension, mesh),) = on_ranks(1, refusals)
    assert re.search("dimensions .'tp',.; pass one with mesh_dim_names=", dimension)
    assert re.search(r"mesh is str; pass torch\.distributed\.device_mesh\.init_device_mesh", mesh)


def test_it_needs_process_groups():
    with pytest.raises(DistributedError, match=r"torch\.distributed is not initialised; start with torchrun"):
        ProcessGroups.of(None, LIMIT)


def members():
    """The ranks of each group of this rank, in two copies of a network over two ranks."""
    groups = ProcessGroups.of(mesh_of(2, 2), LIMIT)
    found = (groups.everyone, groups.parareal, groups.control, groups.dp)
    return groups.rank, [dist.get_process_group_ranks(group) for group in found]


def test_each_rank_is_with_those_of_its_network_and_those_of_its_segments():
    assert on_ranks(4, members) == [
        (0, [[0, 1, 2, 3], [0, 1], [0, 1], [0, 2]]),
        (1, [[0, 1, 2, 3], [0, 1], [0, 1], [1, 3]]),
        (0, [[0, 1, 2, 3], [2, 3], [2, 3], [0, 2]]),
        (1, [[0, 1, 2, 3], [2, 3], [2, 3], [1, 3]]),
    ]
