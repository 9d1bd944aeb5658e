"""Layers divided among ranks: every layer has one owner, and what others read of the stem is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize import layer_parallel
from pararealize.multigrid.distributed.partition import LayerPartition
from tests.models import SharedBias, StochasticDepth
from tests.rank_comparison import vectors


def small(depth=7, **settings):
    model = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6, 0.3) for _ in range(depth)))
    return layer_parallel(model, example_inputs=torch.randn(2, 6), coarsening=2, **settings)


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_every_part_has_one_owner(ranks: int) -> None:
    net = small()
    partition = LayerPartition.of(net, ranks)
    assert partition.ranks == len(partition.labels) == ranks
    names = [name for rank in range(ranks) for name in partition.owned[rank]]
    assert names == list(net.network_parts)  # in the network's order, each once
    for rank in range(ranks):
        assert [part.j for part in partition.parts_of(rank) if part.kind == "layer"] == list(partition.layers(rank))
    intervals = [j for first, last in partition.runs for j in range(first, last + 1)]
    assert intervals == list(range(1, len(net.hierarchy.levels[0].intervals) + 1))
    assert partition.random


def test_ranks_are_described_by_their_layers() -> None:
    labels = LayerPartition.of(small(4), 3).labels
    assert labels == ("0 (layers 0 to 1, 1 to 2)", "1 (layers 2 to 3, 3 to 4)", "2 (no layers)")


def test_contexts_cross_to_the_ranks_that_read_them() -> None:
    net = layer_parallel(SharedBias(8).double(), example_inputs=vectors(2, 6), coarsening=2)
    partition = LayerPartition.of(net, 3)
    assert partition.values
    for i, value in enumerate(partition.values):
        readers = {partition.owners[n] for n, layer in enumerate(net.structure.layers) if i in layer.reads}
        readers |= {2} if i in net.structure.head_reads else set()
        assert value.readers == tuple(sorted(readers - {0}))
        assert value.name in partition.tags
    assert any(value.differentiable for value in partition.values)
