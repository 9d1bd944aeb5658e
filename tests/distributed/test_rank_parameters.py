"""Which parameters are counted, shared and averaged, before and after others have taken their place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.distributed.assignment import assign
from pararealize.distributed.partition import SegmentPartition
from pararealize.distributed.rank_modules import copy_modules
from pararealize.distributed.rank_parameters import RankParameters
from pararealize.distributed.tied_parameters import TiedParameters
from pararealize.errors import DistributedError
from tests.rank_comparison import converted


def parameters_of(rank, *, averaged=False, ranks=2):
    """Those of a rank of a network whose embedding is the last rank's head, too."""
    net, _ = converted("tied embedding")
    partition = SegmentPartition.of(net, assign(net.plan, ranks))
    modules = copy_modules(net, partition.parts_of(rank), torch.device("cpu"))
    phases = {name: i for i, name in enumerate(modules.parts)}
    tied = TiedParameters.of(net, partition)
    return RankParameters(rank, modules, tied, phases, averaged=averaged), modules.tree


def put(tree, name, parameter):
    owner, _, last = name.rpartition(".")
    setattr(tree.get_submodule(owner), last, parameter)


def test_each_parameter_counts_on_one_rank() -> None:
    (first, first_tree), (last, last_tree) = parameters_of(0), parameters_of(1)
    assert list(first.shared) == list(last.shared) == [(0, 1)]
    assert len(first.counted) == len(list(first_tree.parameters()))
    assert len(last.counted) == len(list(last_tree.parameters())) - 1
    assert not first.follow()


@pytest.mark.parametrize("averaged", [False, True])
def test_others_take_the_place_of_the_old_ones(averaged) -> None:
    parameters, tree = parameters_of(0, averaged=averaged)
    phases = {id(parameter): phase for parameter, phase in parameters.phases}
    replaced = {}
    for name, parameter in list(tree.named_parameters(remove_duplicate=False)):
        replaced.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
        put(tree, name, replaced[id(parameter)])
    assert parameters.follow()
    assert not parameters.follow()
    assert {id(p) for p in parameters.counted} == {id(p) for p in tree.parameters()}
    assert [p is tree.get_parameter("embed.weight") for p in parameters.shared[0, 1]] == [True]
    expected = {id(replaced[old]): phase for old, phase in phases.items()}
    assert {id(parameter): phase for parameter, phase in parameters.phases} == expected


def sharded(parameter):
    """As DTensors are told from other parameters."""
    parameter = nn.Parameter(parameter.detach().clone())
    parameter.device_mesh = None
    return parameter


FF = "layers.0.qkv"
CHANGES = {  # what Python code does to the tree of rank 0, whether the network has copies, and what is told
    "a shared one goes": (
        lambda tree: nn.utils.parametrizations.weight_norm(tree.embed),
        False,
        "embed.weight is not there any more, and several ranks share it",
    ),
    "one goes, of a network with copies": (
        lambda tree: nn.utils.parametrizations.weight_norm(tree.get_submodule(FF)),
        True,
        f"{FF}.weight is not there any more, and copies share it",
    ),
    "a module goes": (
        lambda tree: put(tree, FF, nn.Linear(2, 2)),
        False,
        "the module 'qkv' is a Linear now",
    ),
    "one is sharded": (
        lambda tree: put(tree, FF + ".weight", sharded(tree.get_parameter(FF + ".weight"))),
        False,
        f"{FF}.weight is sharded over ranks",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_cannot_be_followed_is_refused_again_and_again(what) -> None:
    change, averaged, message = CHANGES[what]
    parameters, tree = parameters_of(0, averaged=averaged)
    change(tree)
    for _ in range(2):
        with pytest.raises(DistributedError, match=message):
            parameters.follow()
