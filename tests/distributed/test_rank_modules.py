"""A rank's own modules: copies under the network's names, nothing of the rest, memory on a device."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from pararealize import pararealize
from pararealize.distributed.assignment import assign
from pararealize.distributed.partition import SegmentPartition
from pararealize.distributed.rank_modules import copy_modules
from tests.models import LanguageModel, SmallResNet

CPU = torch.device("cpu")


def shares(net, ranks):
    partition = SegmentPartition.of(net, assign(net.plan, ranks))
    return [copy_modules(net, partition.parts_of(rank), CPU) for rank in range(ranks)]


def test_a_share_is_a_copy_that_refers_to_nothing_else() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=torch.randn(2, 3, 8, 8))
    state = net.state_dict()
    made = shares(net, 3)
    for share in made:
        for name, tensor in share.tree.state_dict().items():
            assert torch.equal(tensor, state[name])
            assert tensor.data_ptr() != state[name].data_ptr()
    assert sorted(name for share in made for name in share.tree.state_dict()) == sorted(state)
    made[0].tree.layer1.train(False)
    assert not made[0].parts["g1"].get_submodule("layer1.0.bn1").training  # parts follow the tree
    del state
    whole = weakref.ref(next(net.layer2.parameters()))
    del net
    gc.collect()
    assert whole() is None


def test_tensors_that_no_part_reads_and_second_names_are_kept() -> None:
    model = LanguageModel(shared=True)
    model.spare = nn.Linear(3, 3)
    net = pararealize(model, n=3, example_inputs=torch.randint(0, 11, (2, 5)))
    found = [set(share.tree.state_dict()) for share in shares(net, 3)]
    assert set.union(*found) == set(net.state_dict())
    assert "spare.weight" in found[0]
    assert "spare.weight" not in found[1] | found[2]
    last = shares(net, 3)[2]
    assert last.tree.get_parameter("layers.3.qkv.weight") is last.parts["g3"].get_parameter("layers.0.qkv.weight")
