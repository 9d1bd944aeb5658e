"""Adapters and coarse blocks follow other sizes over their own weights, or say which of them cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture, find_blocks, make_plan
from pararealize.compiler import build_modules
from pararealize.errors import GuardError
from pararealize.network.refitting import refit


class Strided(nn.Module):
    """Maps that shrink by padding, so that halving them again and again need not end where the network does."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        strides = [1, 2, 1, 2, 1]
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, stride=s, padding=1 if s == 1 else padding) for s in strides)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x.mean((2, 3)))


def chain(model: nn.Module, size: int):
    return find_blocks(capture(model, torch.randn(2, 3, size, size)))


@pytest.mark.parametrize("coarse", ["linear", "paper", "bottleneck"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [31, 32, 33, 40])
def test_shapes_are_the_networks_at_other_sizes(coarse: str, padding: int, size: int) -> None:
    model = Strided(padding)
    first = chain(model, 32)
    plan = make_plan(first, 3, coarse=coarse, cuts="paper")
    adapters, blocks = build_modules(first, plan)
    other = chain(model, size)
    fitted, fitted_coarse = refit(other, plan, adapters, blocks)
    x = torch.randn(2, 3, size, size)
    source = x if plan.source == "input" else model.stem(x)
    for segment in plan.segments[1:]:
        shape = other.blocks[segment.first].input.meta["val"].shape[1:]
        assert fitted[f"C{segment.j}"](source).shape[1:] == shape
    assert {id(p) for C in fitted.values() for p in C.parameters()} == {
        id(p) for C in adapters.values() for p in C.parameters()
    }
    for name, F in fitted_coarse.items():
        ends = plan.segments[int(name.removeprefix("F"))]
        r = torch.randn(2, *map(int, other.blocks[ends.first].input.meta["val"].shape[1:]))
        assert F is not None
        assert F(r).shape[1:] == other.blocks[ends.last].output.meta["val"].shape[1:]
        assert list(map(id, F.parameters())) == list(map(id, blocks[name].parameters()))  # type: ignore[union-attr]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


def test_what_has_weights_for_each_token_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(5, 5)

        def forward(self, r: Tensor) -> Tensor:
            return self.mix(r.transpose(1, 2)).transpose(1, 2)

    model = Tokens()
    first = find_blocks(capture(model, torch.randn(2, 5, 3)))
    plan = make_plan(first, 2, coarse="linear", cuts="paper")
    adapters, blocks = build_modules(first, plan)
    other = find_blocks(capture(model, torch.randn(2, 7, 3)))
    assert refit(other, plan, adapters, blocks) == (adapters, blocks)
    with pytest.raises(GuardError, match=r"F1 does not take \(2, 7, 8\)"):
        refit(other, plan, adapters, {"F1": Mixed()})
