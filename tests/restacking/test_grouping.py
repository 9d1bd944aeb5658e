"""Which blocks make a step: groups from the front of each chain, longer chains first, reasons for all others."""

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture
from pararealize.errors import RestackError
from pararealize.restacking.grouping import find_groups
from pararealize.restacking.tableaux import stacked_euler, tableau
from tests.models import MaskedTransformer, Perceptron, SmallResNet


class Nested(nn.Module):
    """Residual blocks whose f is a chain of residual blocks."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(3, 3) for _ in range(inner)) for _ in range(outer))

    def forward(self, x: Tensor) -> Tensor:
        for chain in self.layers:
            u = torch.tanh(x)
            for layer in chain:
                u = u + 0.1 * torch.tanh(layer(u))
            x = x + u.sin()
        return x


def names(model: nn.Module, x: Tensor, s: int, unit: str = "residual") -> tuple[list[list[str]], dict[str, str]]:
    grouping = find_groups(capture(model, x), stacked_euler(s), unit)
    return (
        [[block.name for block in group] for group in grouping.groups],
        {refusal.name: refusal.reason for refusal in grouping.refusals},
    )


def test_groups_begin_at_the_front_of_each_chain_in_the_network_s_order() -> None:
    groups, refusals = names(SmallResNet(5), torch.randn(2, 3, 8, 8), 2)
    assert groups == [["layer1.0", "layer1.1"], ["layer1.2", "layer1.3"], ["layer2.1", "layer2.2"],
                      ["layer2.3", "layer2.4"]]  # fmt: skip
    assert refusals["layer1.4"] == "the rest of a chain of 5, fewer than the 2 stages of euler×2"
    assert set(refusals) == {"layer1.4", "layer2.0"}


def test_a_chain_that_is_too_short_is_refused_as_a_whole() -> None:
    groups, refusals = names(SmallResNet(5), torch.randn(2, 3, 8, 8), 5)
    assert groups == [[f"layer1.{i}" for i in range(5)]]
    assert {refusals[f"layer2.{i}"] for i in range(1, 5)} == {"its chain of 4 is shorter than the 5 stages of euler×5"}


@pytest.mark.parametrize("outer, inner, expected, reason", [
    (2, 4, [4, 4], "it contains blocks that are rewired"),
    (4, 2, [4], "it lies within the f of "),
    (4, 4, [4], "it lies within the f of "),
])  # fmt: skip
def test_of_blocks_within_blocks_the_longer_chain_is_taken_and_the_outer_of_equals(
    outer: int, inner: int, expected: list[int], reason: str
) -> None:
    groups, refusals = names(Nested(outer, inner), torch.randn(2, 3), 4)
    assert [len(group) for group in groups] == expected
    assert len(refusals) == outer * inner + outer - sum(expected)
    assert all(text.startswith(reason) for text in refusals.values())


def test_a_transformer_s_layer_is_two_residuals_or_one_block() -> None:
    model, x = MaskedTransformer(4).eval(), torch.randint(0, 11, (2, 7))
    layers, _ = names(model, x, 2, "block")
    assert [len(group) for group in layers] == [2, 2]
    both = find_groups(capture(model, x), stacked_euler(2), "block").groups
    assert {len(block.additions) for group in both for block in group} <= {1, 2}


def test_no_group_is_refused_with_the_longest_chain_or_the_reasons() -> None:
    with pytest.raises(RestackError, match=r"no chain of 14 residual blocks.*longest has 5.*such as rk4"):
        find_groups(capture(SmallResNet(5), torch.randn(2, 3, 8, 8)), tableau("rk8"))
    with pytest.raises(RestackError, match=r"longest has 3.*such as midpoint"):
        find_groups(capture(SmallResNet(3), torch.randn(2, 3, 8, 8)), tableau("rk4"))
    with pytest.raises(RestackError, match=r"Perceptron has no residual blocks.*written out"):
        find_groups(capture(Perceptron(), torch.randn(2, 8)), tableau("euler"))
