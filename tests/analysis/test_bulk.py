"""The part that holds most of the work is named, with what keeps it whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.bulk import bulk_of
from pararealize.compiler import pararealize
from pararealize.errors import PlanError
from pararealize.tracing.front_end import capture
from tests.models import Growing, SmallResNet


class Within(nn.Module):
    """A large module between small ones."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.front = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.front(x))
        return y[0] if isinstance(y, tuple) else y


def test_no_bulk_where_blocks_share_the_work() -> None:
    assert bulk_of(find_blocks(capture(SmallResNet(), torch.randn(2, 3, 8, 8)))) == ""


@pytest.mark.parametrize(
    "middle, leaves, words",
    [
        (nn.GRU(8, 64, batch_first=True), (), r"middle \(GRU\) is one call of torch.nn's; write its layers out"),
        (nn.Linear(8, 800), (), r"middle \(Linear\) is one layer"),
        (nn.Sequential(*[nn.Linear(8, 8) for _ in range(40)]), ["middle"], r"as leaf_modules says; leave it out there"),
        (Growing(), (), r"in the middle of it, after .*, there are \d+: middle_layers_0 5×8.*; hand on one tensor"),
    ],
)
def test_the_bulk_is_named(middle: nn.Module, leaves: tuple[str, ...], words: str) -> None:
    if isinstance(middle, Growing):
        middle.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
    x = torch.randn(2, 5, 8)
    with pytest.raises(PlanError, match=words):
        pararealize(Within(middle), n=99, example_inputs=x, leaf_modules=leaves)
    chain = find_blocks(capture(Within(middle), x, leaf_modules=leaves))
    if len(chain.blocks) > 1:
        plan = pararealize(Within(middle), n=2, example_inputs=x, leaf_modules=leaves, coarse="linear").plan
        assert any("of the work" in note for note in plan.notes)


class WithLoss(nn.Module):
    """Gives a loss beside what it passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.square().mean(), self.linear(x)


class Ending(nn.Module):
    """Layers, and a function of what they give."""

    def __init__(self, end: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.end(self.layers(x))
        return first + second


@pytest.mark.parametrize("end, note", [(torch.std_mean, ""), (torch.aminmax, ""), (WithLoss(), "the head holds 6")])
def test_of_several_values_the_first_may_have_no_axes(
    end: Callable[[Tensor], tuple[Tensor, Tensor]], note: str
) -> None:
    model, x = Ending(end), torch.randn(2, 5, 8)
    leaves = [WithLoss] if isinstance(end, WithLoss) else ()
    net = pararealize(model, n=2, example_inputs=x, leaf_modules=leaves, coarse="linear")
    assert net(x).shape == model(x).shape
    assert bulk_of(find_blocks(capture(model, x, leaf_modules=leaves)))[:16] == note
