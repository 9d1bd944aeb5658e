"""A network from the meta device: the same values on any number of ranks, and what has none is named."""

from __future__ import annotations

import torch

from pararealize import pararealize
from pararealize.distributed.assignment import assign
from pararealize.distributed.meta_device import draw_values
from pararealize.distributed.partition import SegmentPartition
from pararealize.distributed.rank_modules import copy_modules
from tests.models import LanguageModel, SmallResNet

CPU = torch.device("cpu")


def test_the_same_seed_draws_the_same_on_any_number_of_ranks() -> None:
    with torch.device("meta"):
        model = SmallResNet()
    net = pararealize(model, n=3, example_inputs=torch.randn(2, 3, 8, 8, device="meta"))
    before = torch.get_rng_state()

    def drawn(ranks, seed):
        state = {}
        partition = SegmentPartition.of(net, assign(net.plan, ranks))
        for rank in range(ranks):
            parts = partition.parts_of(rank)
            modules = copy_modules(net, parts, CPU)
            assert draw_values(modules, net, parts, CPU, seed).names() == []
            state |= modules.tree.state_dict()
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


def test_what_no_module_draws_is_named_until_it_is_written() -> None:
    with torch.device("meta"):
        model = LanguageModel()
    net = pararealize(model, n=2, example_inputs=torch.zeros(2, 5, dtype=torch.long, device="meta"))
    parts = SegmentPartition.of(net, assign(net.plan, 1)).parts_of(0)
    modules = copy_modules(net, parts, CPU)
    undefined = draw_values(modules, net, parts, CPU, 0)
    names = undefined.names()
    assert "causal" in names  # booleans cannot be NaN: their version says whether they were written
    assert any("gain" in name for name in names)
    state = dict((*modules.tree.named_parameters(), *modules.tree.named_buffers()))
    with torch.no_grad():
        for name in names[1:]:
            state[name].zero_()
    assert undefined.names() == names[:1]
