"""Who else holds a parameter, in which order, and whose values all begin with; sums in ``test_stage.py``."""

from __future__ import annotations

import pytest
import torch

from pararealize.distributed.assignment import assign
from pararealize.distributed.partition import SegmentPartition
from pararealize.distributed.rank_modules import copy_modules
from pararealize.distributed.tied_parameters import TiedParameters, counted_parameters
from tests.rank_comparison import converted, distance


@pytest.mark.parametrize("name, count", [("tied embedding", 1), ("shared layers", 13)])
def test_ranks_that_share_parameters_are_known_and_see_them_in_one_order(name, count):
    """What the ranks' own modules hold says who shares what, and equal values which of two ranks' tensors are one."""
    net, _ = converted(name)
    partition = SegmentPartition.of(net, assign(net.plan, 2))
    tied = TiedParameters.of(net, partition)
    trees = [copy_modules(net, partition.parts_of(rank), torch.device("cpu")).tree for rank in range(2)]
    names = [dict(tree.named_parameters(remove_duplicate=False)).keys() for tree in trees]
    whole = dict(net.named_parameters(remove_duplicate=False))
    for key, parameter in whole.items():
        others = tuple(other for other in whole if other != key and whole[other] is parameter)
        assert tied.other_names[key] == others
        assert tied.holders[key] == tuple(rank for rank in range(2) if {key, *others} & names[rank])
    shared = [tied.shared_by(rank, tree) for rank, tree in enumerate(trees)]
    assert [list(sets) for sets in shared] == [[(0, 1)]] * 2
    assert len(shared[0][0, 1]) == count
    for ours, theirs in zip(shared[0][0, 1], shared[1][0, 1], strict=True):
        assert distance(ours, theirs) == 0.0
    counted = [counted_parameters(rank, trees[rank], shared[rank]) for rank in range(2)]
    assert sum(map(len, counted)) == len(list(net.parameters()))
    assert len(counted[0]) == len(list(trees[0].parameters()))
