"""A layer-parallel network is taken apart for ranks, or refused on every one of them; more in ``test_stage.py``."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pararealize import layer_parallel
from pararealize.errors import DistributedError
from pararealize.multigrid.distributed.distribution import distribute_layers
from tests.models import StochasticDepth
from tests.rank_comparison import mesh_of
from tests.ranks import on_ranks


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6) for _ in range(7))).eval()
    return layer_parallel(model, example_inputs=torch.ones(2, 6), coarsening=2)


def taken_apart():
    net = small()
    stage = distribute_layers(net, mesh_of(2), timeout=30)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()  # nothing of the stage refers to the network
    output = stage(torch.ones(3, 6), everywhere=True)
    assert torch.equal(output, small()(torch.ones(3, 6)))
    return list(stage.state_dict()), str(stage.extra_repr())


def test_each_rank_has_its_own_layers() -> None:
    (first, text), (last, _) = on_ranks(2, taken_apart)
    assert sorted([*first, *last]) == sorted(small().state_dict())
    assert text.startswith("LayerParallelSequential: 0 (layers 0 to 3, 1 to 4) of 2")


def refused():
    net = small()
    if dist.get_rank() == 1:
        net.to("meta")
    with pytest.raises(DistributedError) as error:
        net.distribute(mesh_of(2), timeout=30)
    return str(error.value)


def test_a_fault_of_one_rank_is_raised_by_all() -> None:
    first, last = on_ranks(2, refused)
    assert first == last
    assert first.startswith("rank 1: the network is on the meta device; give it values first")
