"""Blocks are those that a person would name, by module or by layer, in order and without gaps."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.finder import BlockFinder, BlockSpan, entry_of
from pararealize.analysis.flow import Flow, flow_of
from pararealize.errors import CaptureError
from pararealize.tracing.front_end import capture
from tests.models import LanguageModel, Perceptron, SmallResNet, random_graphs


def flow(model: nn.Module, *inputs: Tensor) -> Flow:
    return flow_of(capture(model, inputs if len(inputs) > 1 else inputs[0]))


def names(runs: list[BlockSpan]) -> list[str]:
    return [run.name for run in runs]


def on_meta(name: str) -> BlockChain:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    return find_blocks(capture(model, torch.empty(2, 3, 224, 224, device="meta")))


def kinds(chain: BlockChain) -> dict[str, int]:
    counted: dict[str, int] = {}
    for block in chain.blocks:
        counted[block.kind] = counted.get(block.kind, 0) + 1
    return counted


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet50", {"Bottleneck": 16}),
        ("vit_b_16", {"EncoderBlock": 12}),
        ("vgg11_bn", {"Conv2d-BatchNorm2d-ReLU": 3, "Conv2d-BatchNorm2d-ReLU-MaxPool2d": 5}),
        ("densenet121", {"_DenseBlock": 4, "_Transition": 3}),
        ("mobilenet_v3_large", {"InvertedResidual": 15}),
    ],
)
def test_torchvision_networks(name: str, expected: dict[str, int]) -> None:
    assert kinds(on_meta(name)) == expected


def assert_in_order(finder: BlockFinder, runs: list[BlockSpan]) -> None:
    """Runs lie one after the other without gaps, and begin and end where one activation is alive."""
    for before, after in itertools.pairwise(runs):
        assert before.last + 1 == after.first
    for run in runs:
        assert run.first <= run.last
        assert run.last in finder.flow.cuts
        assert run.first == 0 or run.first - 1 in finder.flow.cuts
    assert len(set(names(runs))) == len(runs)


@settings(max_examples=15)
@given(random_graphs())
def test_runs_of_random_networks_are_in_order(case: tuple[nn.Module, Tensor]) -> None:
    try:
        finder = BlockFinder(flow(case[0], case[1]))
    except CaptureError:
        return
    assert_in_order(finder, finder.spans())


class Inner(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


class Heavy(nn.Module):
    """Most of its work lies outside its two inner modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.wide, self.narrow = Inner(), Inner(), nn.Linear(6, width), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.narrow(torch.relu(self.wide(self.a(x)))))


@pytest.mark.parametrize("width, around", [(12, ["Inner"] * 2), (60, [])])
def test_the_class_that_does_the_work_is_the_block(width: int, around: list[str]) -> None:
    """And modules before and behind it are, where they do enough; not again those within it, of the same class."""
    model = nn.Sequential(Inner(), Inner(), *(Heavy(width) for _ in range(3)), Inner(), Inner(), nn.Linear(6, 2))
    finder = BlockFinder(flow(model, torch.randn(2, 6)))
    runs = finder.spans()
    assert_in_order(finder, runs)
    assert [run.kind for run in runs] == [*around, *["Heavy"] * 3, *around]


def test_of_classes_that_do_as_much_the_one_with_more_modules_is_the_block() -> None:
    model = nn.Sequential(*(nn.Sequential(Inner(), nn.Dropout(), Inner()) for _ in range(3)))
    assert names(BlockFinder(flow(model, torch.randn(2, 6))).spans()) == ["0.0", "0.2", "1.0", "1.2", "2.0", "2.2"]


def test_a_module_that_is_called_again_is_numbered() -> None:
    shared = Inner()
    finder = BlockFinder(flow(nn.Sequential(Inner(), *[shared] * 3), torch.randn(2, 6)))
    assert names(finder.spans()) == ["0", "1", "1#2", "1#3"]


def test_what_lies_between_blocks_joins_the_block_before_or_is_one() -> None:
    light = nn.Sequential(Inner(), nn.LayerNorm(6), Inner(), nn.Dropout(), nn.GELU(), Inner(), nn.LayerNorm(6))
    finder = BlockFinder(flow(light, torch.randn(2, 6)))
    runs = finder.spans()
    assert_in_order(finder, runs)
    assert names(runs) == ["0", "2", "5"]
    assert [run.last - run.first for run in runs] == [2, 3, 1], "what follows the last one is the head's"
    heavy = nn.Sequential(Inner(), Inner(), nn.Linear(6, 8), Inner(8), Inner(8))
    assert [(run.name, run.kind) for run in BlockFinder(flow(heavy, torch.randn(2, 6))).spans()] == [
        ("0", "Inner"), ("1", "Inner"), ("2", "Linear"), ("3", "Inner"), ("4", "Inner"),
    ]  # fmt: skip


def images(*layers: nn.Module) -> list[BlockSpan]:
    finder = BlockFinder(flow(nn.Sequential(*layers), torch.randn(2, 4, 8, 8)))
    runs = finder.spans()
    assert_in_order(finder, runs)
    return runs


def conv(out: int = 4) -> nn.Module:
    return nn.Conv2d(4, out, 3, padding=1)


def test_flat_networks_are_cut_before_each_weighted_layer() -> None:
    runs = images(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU(), conv(), nn.Flatten())
    assert [run.kind for run in runs] == ["Conv2d-BatchNorm2d-ReLU-MaxPool2d", "Conv2d-ReLU", "Conv2d"]
    assert names(runs) == ["0", "4", "6"]


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(4), nn.MaxPool2d(8)])
def test_a_pool_that_ends_the_maps_is_the_heads(pool: nn.Module) -> None:
    runs = images(conv(), nn.ReLU(), conv(), pool, nn.Flatten())
    assert [run.kind for run in runs] == ["Conv2d-ReLU", "Conv2d"]


def test_a_pool_that_gives_indices_beside_its_values_is_light() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
            self.pool = nn.MaxPool2d(2, 1, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = self.pool(layer(x).relu())
            return x

    spans = BlockFinder(flow(Pooled(), torch.randn(2, 4, 9, 9))).spans()
    assert [span.name for span in spans] == [f"layers.{i}" for i in range(4)]


def test_layers_of_another_kind_at_the_end_are_the_heads() -> None:
    """As in VGG: the linear layers of the classifier are no blocks, however light what stands between them is."""
    runs = images(conv(), nn.ReLU(), conv(), nn.ReLU(), conv(), nn.Flatten(), nn.Linear(256, 4), nn.ReLU())
    assert [run.kind for run in runs] == ["Conv2d-ReLU", "Conv2d-ReLU", "Conv2d"]


def test_where_nothing_repeats_every_weighted_layer_is_a_block() -> None:
    finder = BlockFinder(flow(nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(20, 4)), torch.randn(2, 3, 5)))
    assert [run.kind for run in finder.spans()] == ["Conv1d", "Linear"]


def test_layers_written_as_functions_are_named_after_their_module() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(nn.Parameter(torch.randn(6, 6)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.weights:
                x = torch.relu(nn.functional.linear(x, weight))
            return x

    top = BlockFinder(flow(Functional(), torch.randn(2, 6))).spans()
    assert [(run.name, run.kind) for run in top] == [
        ("linear", "linear-relu"),
        *((f"linear_{i}", "linear-relu") for i in (1, 2)),
    ]
    inside = BlockFinder(flow(nn.Sequential(nn.Tanh(), Functional()), torch.randn(2, 6))).spans()
    assert names(inside) == ["1.linear", "1.linear_1", "1.linear_2"]


def test_work_is_shared_out() -> None:
    model = Perceptron(depth=3, width=8)
    found = flow(model, torch.randn(2, 8))
    finder = BlockFinder(found)
    runs = finder.spans()
    last = len(found.order) - 1
    assert finder.amount(0, last) == pytest.approx(sum(finder.work))
    assert finder.amount(0, 1) + finder.amount(2, last) == pytest.approx(finder.amount(0, last))
    assert finder.share(runs) == pytest.approx(1)
    assert finder.share([]) == 0
    assert 0 < finder.share(runs[:1]) == pytest.approx(finder.amount(runs[0].first, runs[0].last) / sum(finder.work))


def test_where_the_state_begins() -> None:
    begin = entry_of(flow(SmallResNet(), torch.randn(2, 3, 8, 8)))
    assert begin is not None
    assert begin.name == "x"

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))) + y

    assert entry_of(flow(Two(), torch.randn(2, 4), torch.randn(2, 4))) is None, "two tensors enter"
    assert entry_of(flow(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), torch.randint(9, (2, 3)))) is None
    scaled = entry_of(flow(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), torch.randn(2, 2, 4)))
    assert scaled is not None
    assert scaled.name != "input"


class PostNorm(nn.Module):
    """A norm behind each sum; attention as one module, the MLP as two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.widen, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + self.attention(x, x, x, need_weights=False)[0])
        return self.second(x + self.narrow(self.widen(x).relu()))


def test_the_finest_blocks_lie_between_all_cuts() -> None:
    """A layer is cut between attention and MLP, whose blocks have the names of what holds most of their weights."""
    model = nn.Sequential(nn.Linear(5, 8), *(PostNorm() for _ in range(3)), nn.Linear(8, 2))
    recorded = capture(model, torch.randn(2, 6, 5))
    assert kinds(find_blocks(recorded)) == {"PostNorm": 3}
    chain = find_blocks(recorded, granularity="finest")
    assert (chain.granularity, str(chain)) == (
        "finest",
        "Sequential: 6 blocks (MultiheadAttention × 3, Linear-relu-Linear-add-… × 3)",
    )
    assert [block.name for block in chain.blocks[:3]] == ["1.attention", "1.widen", "2.attention"]
    layer = model[1]
    x = torch.randn(4, 6, 8)
    assert torch.equal(chain.module(0, 1).eval()(x), layer.eval()(x))
    residual = SmallResNet()
    assert kinds(find_blocks(capture(residual, torch.randn(2, 3, 8, 8)), granularity="finest")) == {"Residual": 6}


def test_finest_blocks_of_a_module_that_is_called_again_are_numbered() -> None:
    recorded = capture(LanguageModel(3, shared=True), torch.randint(0, 11, (2, 7)))
    names = [block.name for block in find_blocks(recorded, granularity="finest").blocks]
    assert names[:4] == ["layers.0.qkv", "layers.0.mlp", "layers.0.qkv#2", "layers.0.mlp#2"]
    assert len(set(names)) == len(names) == 6
