"""Selections of windows as conversions: where they begin and are cut, and what is folded where nothing can be."""

import pytest
import torch
from torch import nn

from pararealize import capture, find_blocks
from pararealize.errors import CoarseError
from pararealize.tradeoffs.conversion import converted_with, foldable_blocks
from tests.added_branches import AddedLinear, chain_of

from .chains import batches, network

NAMES = [str(i) for i in range(1, 7)]


@pytest.mark.parametrize("cuts, starts", [(None, (1, 3)), ([1, 2], (1, 2))])
def test_windows_are_cut_where_it_is_said_or_by_cost(cuts: list[int] | None, starts: tuple[int, int]) -> None:
    settings = {"coarse": "linear", "example_inputs": batches(1)[0]}
    net = converted_with(network(), NAMES, 2, [(1, 5)], cuts, settings)
    (window,) = (window for window in net.plan.windows if not window.sequential)
    assert tuple(segment.first for segment in window.segments) == starts
    assert window.segments[-1].last == 4
    assert not net.training


def test_windows_without_a_layer_for_a_map_are_sums() -> None:
    class Squashed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tanh(super().forward(x))

    model = nn.Sequential(*(Squashed(nn.Linear(6, 6)) for _ in range(3)), *(AddedLinear(6) for _ in range(3))).eval()
    example = torch.randn(4, 6)
    chain = find_blocks(capture(model, example))
    assert foldable_blocks("folded", chain) == {3, 4, 5}
    assert foldable_blocks("low-rank", chain) == frozenset()
    settings = {"coarse": "folded", "example_inputs": example}
    names = [block.name for block in chain.blocks]
    plans = [converted_with(model, names, 2, [span], None, settings).plan for span in ((0, 2), (3, 5))]
    assert [plan.coarse for plan in plans] == ["linear", "folded"]
    with pytest.raises(CoarseError, match="unknown"):
        converted_with(model, names, 2, [(0, 2)], None, settings | {"coarse": "unknown"})


def test_frozen_layers_take_no_maps() -> None:
    model = chain_of(AddedLinear, 6, 4).float().requires_grad_(False)
    with pytest.raises(CoarseError, match="all of these are frozen"):
        foldable_blocks("folded", find_blocks(capture(model, torch.randn(4, 6))))
