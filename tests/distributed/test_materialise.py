"""A rank's own modules: copies under the network's names, nothing of the rest, memory on a device."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from pararealize import pararealize
from pararealize.distributed.materialise import draw, share_of
from pararealize.distributed.partition import SegmentPartition, assign
from tests.models import LanguageModel, SmallResNet

CPU = torch.device("cpu")


def shares(net, ranks):
    layout = SegmentPartition.of(net, assign(net.plan, ranks))
    targets = {name: part.target for name, part in layout.parts.items()}
    return [(layout.names(rank), share_of(net, layout.names(rank), CPU, targets)) for rank in range(ranks)]


def test_a_share_is_a_copy_that_refers_to_nothing_else() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=torch.randn(2, 3, 8, 8))
    state = net.state_dict()
    made = [share for _, share in shares(net, 3)]
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
    found = [set(share.tree.state_dict()) for _, share in shares(net, 3)]
    assert set.union(*found) == set(net.state_dict())
    assert "spare.weight" in found[0]
    assert "spare.weight" not in found[1] | found[2]
    (_, last) = shares(net, 3)[2]
    assert last.tree.get_parameter("layers.3.qkv.weight") is last.parts["g3"].get_parameter("layers.0.qkv.weight")


def test_the_same_seed_draws_the_same_on_any_number_of_ranks() -> None:
    with torch.device("meta"):
        model = SmallResNet()
    net = pararealize(model, n=3, example_inputs=torch.randn(2, 3, 8, 8, device="meta"))
    before = torch.get_rng_state()

    def drawn(ranks, seed):
        state = {}
        for names, share in shares(net, ranks):
            assert draw(share, net, names, CPU, seed).names() == []
            state |= share.tree.state_dict()
        return state

    one, three, other = drawn(1, 0), drawn(3, 0), drawn(3, 1)
    assert one.keys() == set(net.state_dict())
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one if name.startswith("layer1"))
    assert torch.equal(torch.get_rng_state(), before)
    real = pararealize(SmallResNet(), n=3, example_inputs=torch.randn(2, 3, 8, 8)).state_dict()
    new = [name for name in real if name.split(".")[0] in ("adapters", "coarse")]
    assert new
    assert all(torch.equal(one[name], real[name]) for name in new)
