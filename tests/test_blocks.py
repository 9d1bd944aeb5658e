"""Blocks are those that a person would name; cuts are where one activation is alive; pieces compose to the whole."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from models import (
    Growing,
    MaskedTransformer,
    Perceptron,
    RandomGraph,
    SeveralDepths,
    SharedBias,
    SmallResNet,
    UNet,
    random_graphs,
)
from torch import Tensor, nn

from pararealize.blocks import BlockChain, find_blocks
from pararealize.capture import Capture, capture
from pararealize.compiler import make_plan
from pararealize.errors import CaptureError, CutError, PlanError
from pararealize.liveness import dependencies, flow_of
from pararealize.models import resnet1001


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


def on_meta(name: str) -> BlockChain:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    return find_blocks(capture(model, torch.empty(2, 3, 224, 224, device="meta")))


def kinds(chain: BlockChain) -> dict[str, int]:
    counted: dict[str, int] = {}
    for block in chain.blocks:
        counted[block.kind] = counted.get(block.kind, 0) + 1
    return counted


def test_resnet1001_has_333_units_in_three_stages() -> None:
    with torch.device("meta"):
        model = resnet1001()
    chain = find_blocks(capture(model, torch.empty(2, 3, 32, 32, device="meta")))
    assert kinds(chain) == {"PreActBottleneck": 333}
    assert chain.stages == ((0, 110), (111, 221), (222, 332))
    assert [str(chain.blocks[last].y) for _, last in chain.stages] == ["64×32×32", "128×16×16", "256×8×8"]
    assert len({block.exact_signature for block in chain.blocks}) == 6
    assert chain.stem.parameters == 3 * 16 * 9


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet50", {"Bottleneck": 16}),
        ("resnet152", {"Bottleneck": 50}),
        ("vit_b_16", {"EncoderBlock": 12}),
        ("vgg16", {"Conv2d-ReLU": 8, "Conv2d-ReLU-MaxPool2d": 5}),
        ("vgg11_bn", {"Conv2d-BatchNorm2d-ReLU": 3, "Conv2d-BatchNorm2d-ReLU-MaxPool2d": 5}),
        ("swin_t", {"SwinTransformerBlock": 12, "PatchMerging": 3}),
        ("densenet121", {"_DenseBlock": 4, "_Transition": 3}),
        ("mobilenet_v3_large", {"InvertedResidual": 15}),
    ],
)
def test_torchvision_networks(name: str, expected: dict[str, int]) -> None:
    assert kinds(on_meta(name)) == expected


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


def test_masks_are_context_and_no_interface() -> None:
    ids = torch.randint(0, 11, (2, 5))
    chain = chain_of(MaskedTransformer(), ids)
    assert [block.kind for block in chain.blocks] == ["MaskedLayer"] * 4
    assert {len(block.context) for block in chain.blocks} == {1}
    assert chain.source is None


def test_values_of_parameters_and_conditioning_that_all_blocks_read() -> None:
    model, x = SharedBias(), torch.randn(3, 6)
    chain = chain_of(model, x)
    assert [block.name for block in chain.blocks] == ["layers.0", "layers.1", "layers.2", "layers.3", "last"]
    assert [node.name for node in chain.flow.broadcast] == ["condition"]
    assert [len(block.context) for block in chain.blocks] == [2, 2, 2, 2, 0]


def test_signatures_ignore_names_and_widths() -> None:
    narrow = chain_of(SmallResNet(width=4), torch.randn(2, 3, 8, 8))
    wide = chain_of(SmallResNet(width=6), torch.randn(2, 3, 8, 8))
    assert [b.signature for b in narrow.blocks] == [b.signature for b in wide.blocks]
    assert not {b.exact_signature for b in narrow.blocks} & {b.exact_signature for b in wide.blocks}
    assert narrow.blocks[1].exact_signature == narrow.blocks[2].exact_signature
    assert narrow.blocks[3].signature != narrow.blocks[4].signature


def test_blocks_that_run_in_another_order_are_one_structure() -> None:
    class Either(nn.Module):
        def __init__(self, flipped: bool) -> None:
            super().__init__()
            self.a, self.b, self.flipped = nn.Linear(4, 4), nn.Linear(4, 4), flipped

        def forward(self, x: Tensor) -> Tensor:
            if self.flipped:
                right = torch.relu(self.b(x))
                return self.a(x) + right
            left = self.a(x)
            return left + torch.relu(self.b(x))

    chain = chain_of(nn.Sequential(Either(False), Either(True), Either(False)), torch.randn(2, 4))
    assert len({block.signature for block in chain.blocks}) == 1
    assert len({block.exact_signature for block in chain.blocks}) == 2


@pytest.mark.parametrize(
    "model, x",
    [
        (SmallResNet(), torch.randn(2, 3, 8, 8)),
        (MaskedTransformer(), torch.randint(0, 11, (2, 5))),
        (SharedBias(), torch.randn(2, 6)),
        (Perceptron(), torch.randn(2, 8)),
    ],
)
def test_pieces_compose_to_the_whole(model: nn.Module, x: Tensor) -> None:
    model.eval()
    chain = chain_of(model, x)
    values = dict(zip((n for n in chain.capture.graph.nodes if n.op == "placeholder"), [x], strict=True))
    interpreter = torch.fx.Interpreter(chain.capture.graph_module)
    interpreter.garbage_collect_values = False
    expected = interpreter.run(x)
    values = interpreter.env
    half = len(chain.blocks) // 2
    z = values[chain.blocks[0].input]
    for first, last in ((0, half - 1), (half, len(chain.blocks) - 1)):
        z = chain.module(first, last)(z.clone(), *(values[node] for node in chain.context(first, last)))
    head = chain.piece(chain.head)(z, *(values[node] for node in chain.head.context))
    assert torch.equal(head, expected)
    assert torch.equal(chain.piece(chain.stem)(x), values[chain.blocks[0].input]) or chain.capture.graph_module.training


def dominating(captured: Capture) -> set[str]:
    """Nodes through which every path of the state leads to the output: the independent definition of a cut."""
    depends = dependencies(captured.graph)
    graph: nx.DiGraph = nx.DiGraph()
    output = next(node for node in captured.graph.nodes if node.op == "output")
    state = [node for node in captured.graph.nodes if node is not output and depends[node] == (True, True)]
    for node in (*state, output):
        before = [argument for argument in node.all_input_nodes if depends[argument] == (True, True)]
        graph.add_edges_from((argument, node) for argument in before)
        if not before:
            graph.add_edge("input", node)
    above = nx.immediate_dominators(graph, "input")
    found, node = set(), above[output]
    while node != "input":
        if isinstance(node.meta["val"], Tensor):  # not a tuple
            found.add(node.name)
        node = above[node]
    return found


@settings(max_examples=60)
@given(random_graphs())
def test_cuts_are_the_dominators_of_the_output(case: tuple[RandomGraph, Tensor]) -> None:
    model, x = case
    try:
        captured = capture(model, x)
    except CaptureError:  # a dropout whose result nobody reads: the random numbers go another way
        assume(False)
    flow = flow_of(captured)
    assert {flow.order[i].name for i in flow.cuts} == dominating(captured)


def test_refused_cuts_say_which_tensors_are_alive() -> None:
    chain = chain_of(SmallResNet(), torch.randn(2, 3, 8, 8))
    shown = [str(cut) for cut in chain.refused]
    assert any("layer1.1.conv2" in line and "2 activations are alive" in line and "4×8×8" in line for line in shown)


def test_skips_are_context_where_they_allow_a_chain() -> None:
    chain = chain_of(UNet(), torch.randn(2, 3, 8, 8))
    assert [block.name for block in chain.blocks] == ["down.3", "up.1", "up.2", "up.3"]
    assert [node.name for node in chain.flow.broadcast] == ["relu", "relu_1"]


def test_networks_without_a_chain_are_refused() -> None:
    for model in (Growing(), SeveralDepths()):
        chain = chain_of(model, torch.randn(2, 4))
        assert len(chain.blocks) == 1
        name = type(model).__name__
        with pytest.raises(
            PlanError, match=rf"n = 3 is out of range: {name} .* \d+ activations are alive: .*from 1 to 1"
        ):
            make_plan(chain, 3)
    with pytest.raises(CutError, match=r"no blocks between cut points: .*leaf_modules"):
        chain_of(nn.LSTM(4, 4), torch.randn(2, 3, 4))
