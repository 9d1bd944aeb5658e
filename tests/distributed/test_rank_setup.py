"""What every rank is made of: agreed before the first message, connected, with one value of each parameter."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pararealize import pararealize
from pararealize.distributed import consistency
from pararealize.distributed.assignment import assign
from pararealize.distributed.partition import SegmentPartition
from pararealize.distributed.process_groups import ProcessGroups
from pararealize.distributed.rank_modules import copy_modules
from pararealize.distributed.rank_setup import agree_on_partition, refuse_norms, set_up_rank
from pararealize.errors import DistributedError
from tests.models import SmallResNet
from tests.rank_comparison import converted, mesh_of
from tests.ranks import on_ranks


def divided(net, ranks):
    return SegmentPartition.of(net, assign(net.plan, ranks))


def faulty(way):
    """A fault, another fact or another weight of one rank alone; every rank raises it."""
    net, _ = converted("perceptron")
    rank = dist.get_rank()
    if way in ("weights", "weights of a copy") and rank == 1:
        next(net.parameters()).data.add_(1)

    mesh = mesh_of(2, 1) if way == "weights of a copy" else mesh_of(2)

    def divide(ranks):
        if way == "fault" and rank == 1:
            raise DistributedError("it is broken here")
        return divided(net, ranks), {"colour": "red" if way == "fact" and rank == 1 else "green"}

    with pytest.raises(DistributedError) as error, ProcessGroups.joined(mesh, timedelta(seconds=20)) as groups:
        agree_on_partition(net, groups, divide)
    return str(error.value)


@pytest.mark.parametrize("way, text", [
    ("fault", "rank 1: it is broken here"),
    ("fact", "the ranks do not agree on how to distribute the network: colour is green on rank 0, red on rank 1"),
    ("weights", "the ranks do not agree on how to distribute the network: the digest of 0.weight is"),
    ("weights of a copy", "the ranks do not agree on how to distribute the network: the digest of 0.weight is"),
])  # fmt: skip
def test_all_ranks_raise_what_one_of_them_finds(way: str, text: str) -> None:
    first, last = on_ranks(2, faulty, way)
    assert first == last
    assert first.startswith(text)


def hanging():
    """A rank hangs before it has the digests of its weights; the other waits for them."""
    net, _ = converted("perceptron")
    if dist.get_rank() == 1:
        consistency.digests = lambda _: time.sleep(4) or {}
    with pytest.raises(DistributedError) as error, ProcessGroups.joined(mesh_of(2), timedelta(seconds=2)) as groups:
        agree_on_partition(net, groups, lambda ranks: (divided(net, ranks), {}))
    return str(error.value)


def test_a_rank_that_hangs_over_its_weights_is_named() -> None:
    for text in on_ranks(2, hanging):
        assert text.startswith("rank 1 has not answered for 2 s: it was last seen in 'reading its weights'"), text


def test_norms_that_several_ranks_share_are_refused() -> None:
    model = SmallResNet()
    model.layer2[-1] = model.layer2[-2]
    net = pararealize(model, n=5, example_inputs=torch.randn(2, 3, 8, 8))
    refuse_norms(net, SegmentPartition.of(net, assign(net.plan, 1)))
    with pytest.raises(DistributedError, match=r"batch norms that several ranks share .*bn1 on ranks \[0, 1\]"):
        refuse_norms(net, SegmentPartition.of(net, assign(net.plan, 2, [4, 1])))
    net.layer1[0].bn1.__class__ = nn.SyncBatchNorm
    with pytest.raises(DistributedError, match=r"1 synchronised batch norms \(layer1.0.bn1\) would wait"):
        refuse_norms(net, SegmentPartition.of(net, assign(net.plan, 1)))


def connected():
    """Copies of two ranks each, whose weights differ before."""
    mesh = mesh_of(2, 2)
    with ProcessGroups.joined(mesh, 20.0) as groups:
        net, _ = converted("tied embedding")
        partition = divided(net, 2)
        modules = copy_modules(net, partition.parts_of(groups.rank), groups.device)
        with torch.no_grad():
            for parameter in modules.tree.parameters():
                parameter.add_(dist.get_rank())
        phases = dict.fromkeys(modules.parts, 0)
        setup = set_up_rank(net, groups, partition, modules, last_phases=phases, bucket_bytes=100, name="Net")
    state = {name: tensor.tolist() for name, tensor in modules.tree.named_parameters()}
    setup.watch.close()
    return setup.description, setup.watch.who, state, len(setup.counted)


def test_copies_and_holders_begin_with_one_value() -> None:
    descriptions, who, states, counted = zip(*on_ranks(4, connected), strict=True)
    assert descriptions[0] == descriptions[2] != descriptions[1]
    assert descriptions[0].startswith("Net: 0 (segment")
    assert who[0] == who[3]
    assert [text.partition(",")[0] for text in who[0]] == [
        "rank 0 (replica 1", "rank 1 (replica 1", "rank 2 (replica 2", "rank 3 (replica 2"
    ]  # fmt: skip
    assert states[0] == states[2]
    assert states[1] == states[3]
    assert states[0]["embed.weight"] == states[1]["head.weight"]
    net, _ = converted("tied embedding")
    assert counted[0] + counted[1] == len(list(net.parameters()))
