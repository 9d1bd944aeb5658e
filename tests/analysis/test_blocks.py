"""Blocks with their names and spaces, in a chain that leaves nothing of the network out."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn

from pararealize.analysis.blocks import BlockChain, find_blocks, why_no_more
from pararealize.errors import CutError, PararealizeError
from pararealize.models import resnet1001
from pararealize.tracing.front_end import capture
from tests.models import MaskedTransformer, Perceptron, SharedBias, SmallResNet, random_graphs


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


def on_meta(name: str) -> BlockChain:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    return find_blocks(capture(model, torch.empty(2, 3, 224, 224, device="meta")))


def test_resnet1001_has_333_units_in_three_stages() -> None:
    with torch.device("meta"):
        model = resnet1001()
    chain = find_blocks(capture(model, torch.empty(2, 3, 32, 32, device="meta")))
    assert str(chain) == "PreActResNet: 333 blocks (PreActBottleneck × 333)"
    assert chain.stages == ((0, 110), (111, 221), (222, 332))
    assert [str(chain.blocks[last].y) for _, last in chain.stages] == ["64×32×32", "128×16×16", "256×8×8"]
    assert len({block.exact_signature for block in chain.blocks}) == 6
    assert chain.stem.parameters == 3 * 16 * 9


def test_a_chain_remembers_where_it_is_told_to() -> None:
    chain, asked = chain_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), torch.randn(2, 4)), list[int]()

    def compute() -> int:
        asked.append(len(asked))
        return asked[-1]

    assert [chain.once("key", compute) for _ in range(2)] == [0, 1]
    chain = chain.remembering()
    assert [dataclasses.replace(chain, is_on_twin=True).once("key", compute), chain.once("key", compute)] == [2, 2]


def test_names_are_qualified_and_spaces_know_their_channels() -> None:
    chain = on_meta("swin_t")
    assert [block.name for block in chain.blocks[:4]] == ["features.1.0", "features.1.1", "features.2", "features.3.0"]
    assert (str(chain.blocks[0].x), chain.blocks[0].x.channel) == ("56×56×96", 2)
    assert (str(chain.source), chain.source.channel if chain.source else None) == ("3×224×224", 0)
    tokens = on_meta("vit_b_16").blocks[0].x
    assert (str(tokens), tokens.channels, tokens.extent) == ("197×768", 768, (197,))


def test_a_flat_chain_begins_at_the_raw_input() -> None:
    chain = chain_of(Perceptron(depth=4), torch.randn(2, 8))
    assert [block.name for block in chain.blocks] == ["0", "2", "4", "6", "8"]
    assert chain.stem.nodes == ()
    assert chain.source is not None
    assert chain.source.shape == (8,)


def test_token_ids_are_no_source_and_an_input_that_nothing_reads_is_passed_over() -> None:
    assert chain_of(MaskedTransformer(), torch.randint(0, 11, (2, 5))).source is None

    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Perceptron()

        def forward(self, unread: Tensor, x: Tensor) -> Tensor:
            return self.net(x)

    source = find_blocks(capture(Unread(), (torch.randn(2, 3, 4), torch.randn(2, 8)))).source
    assert source is not None
    assert source.shape == (8,)

    class Two(Unread):
        def forward(self, unread: Tensor, x: Tensor) -> Tensor:
            return self.net(x + unread)

    two = capture(Two(), (torch.randn(2, 8), torch.randn(2, 8)))
    assert find_blocks(two).source is None, "adapters that read one of the inputs would never see the other"
    with_scalars = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4), *(nn.Linear(4, 4) for _ in range(3)))
    assert chain_of(with_scalars, torch.randn(5)).source is None, "there is a number a sample, and no space"


@pytest.mark.parametrize(
    "model, x",
    [
        (SmallResNet(), torch.randn(2, 3, 8, 8)),
        (MaskedTransformer(), torch.randint(0, 11, (2, 5))),
        (SharedBias(), torch.randn(2, 6)),
        (Perceptron(), torch.randn(2, 8)),
    ],
)
def test_a_chain_leaves_nothing_out(model: nn.Module, x: Tensor) -> None:
    """Stem, blocks and head hold the whole state in order, and each block reads what the one before it gives."""
    chain = chain_of(model, x)
    parts = (chain.stem, *chain.blocks, chain.head)
    assert tuple(node for part in parts for node in part.nodes) == chain.flow.order
    for before, after in itertools.pairwise(parts):
        assert before.output is after.input
        assert before.y == after.x
    for block in chain.blocks:
        assert block.y.shape == tuple(block.output.meta["val"].shape[1:])
        assert block.output in block.nodes


def test_stages_are_runs_of_one_shape() -> None:
    chain = chain_of(SmallResNet(depth=3), torch.randn(2, 3, 8, 8))
    assert chain.stages == ((0, 2), (3, 5))
    assert str(chain.blocks[3]) == "layer2.0 Residual: 4×8×8 → 8×4×4, 920 parameters"


def test_why_there_are_no_more() -> None:
    flow = chain_of(Perceptron(depth=2), torch.randn(2, 8)).flow
    assert why_no_more(flow) == "Perceptron has no further operation to cut after"
    flow = chain_of(SmallResNet(), torch.randn(2, 3, 8, 8)).flow
    told = why_no_more(flow)
    assert told.startswith(f"SmallResNet has {len(flow.cuts)} cut points (places where one activation is alive) among ")
    assert told.count(" activations are alive: ") == 3


@settings(max_examples=15)
@given(random_graphs())
def test_the_finest_chain_refines_the_other(case: tuple[nn.Module, Tensor]) -> None:
    """Stem and head are the same, the cuts of the repeated blocks are among its own, and nothing is left out."""
    model, x = case
    try:
        recorded = capture(model, x)
        chain = find_blocks(recorded)
    except PararealizeError:
        return
    finest = find_blocks(recorded, granularity="finest")
    assert {block.output.name for block in chain.blocks} <= {block.output.name for block in finest.blocks}
    ends = [(part.stem.nodes, part.head.nodes) for part in (chain, finest)]
    assert [[len(nodes) for nodes in pair] for pair in ends[:1]] == [
        [len(nodes) for nodes in pair] for pair in ends[1:]
    ]
    parts = (finest.stem, *finest.blocks, finest.head)
    assert tuple(node for part in parts for node in part.nodes) == finest.flow.order
    assert len({block.name for block in finest.blocks}) == len(finest.blocks)
    for before, after in itertools.pairwise(parts):
        assert before.output is after.input


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(CutError, match="granularity is 'fine'; pass 'repeated' or 'finest'"):
        find_blocks(capture(Perceptron(), torch.randn(2, 8)), granularity="fine")  # type: ignore[arg-type]
