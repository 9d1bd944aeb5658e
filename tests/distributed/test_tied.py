"""Who else holds a parameter, in which order, and whose values all begin with; sums in ``test_stage.py``."""

from __future__ import annotations

import pytest
import torch

from pararealize.distributed.materialise import share_of
from pararealize.distributed.partition import SegmentPartition, assign
from pararealize.distributed.tied import _holders, _in_order
from tests.beside import converted, distance, furthest, mesh_of
from tests.ranks import on_ranks


def held(net, layout, rank):
    """The parameters of a rank's own modules by all of their names."""
    targets = {part: call.target for part, call in layout.parts.items()}
    share = share_of(net, layout.names(rank), torch.device("cpu"), targets)
    return dict(share.tree.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("name", ["tied embedding", "shared layers"])
def test_ranks_that_share_parameters_are_known_and_see_them_in_one_order(name):
    """What the ranks' own modules hold says who shares what, and equal values which of two ranks' tensors are one."""
    net, _ = converted(name)
    layout = SegmentPartition.of(net, assign(net.plan, 2))
    aliases, holders = _holders(net, layout)
    parts = [held(net, layout, rank) for rank in range(2)]
    whole = dict(net.named_parameters(remove_duplicate=False))
    for key, parameter in whole.items():
        assert aliases[key] == tuple(other for other in whole if other != key and whole[other] is parameter)
        assert holders[key] == tuple(rank for rank in range(2) if {key, *aliases[key]} & parts[rank].keys())
    shared = [{id(p): p for key, p in part.items() if holders[key] == (0, 1)} for part in parts]
    orders = [_in_order(list(found.values()), part, aliases) for found, part in zip(shared, parts, strict=True)]
    assert len(orders[0]) > 1
    for ours, theirs in zip(*orders, strict=True):
        assert distance(ours, theirs) == 0.0


def other_weights():
    """Copies begin with the weights of the first."""
    mesh = mesh_of(2, 1)
    net, _ = converted("perceptron")
    other, _ = converted("perceptron")
    if mesh.get_local_rank("dp") == 1:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
    return furthest(other.distribute(mesh, timeout=30), net, "state")


def test_copies_begin_with_the_weights_of_the_first():
    assert on_ranks(2, other_weights) == [0.0, 0.0]
