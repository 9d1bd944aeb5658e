"""A space knows its channels, and where they are is told by the operations around a value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pararealize.analysis.space import Space, space_of
from pararealize.tracing.front_end import capture


@pytest.mark.parametrize(
    "space, channels, extent, last",
    [
        (Space(shape=(64, 32, 30), channel=0), 64, (32, 30), False),
        (Space(shape=(56, 56, 96), channel=2), 96, (56, 56), True),
        (Space(shape=(197, 768), channel=1), 768, (197,), True),
        (Space(shape=(512,), channel=0), 512, (), False),
        (Space(shape=(), channel=0), 1, (), False),
    ],
)
def test_parts_of_a_shape(space: Space, channels: int, extent: tuple[int, ...], last: bool) -> None:
    assert (space.channels, space.extent, space.channels_last) == (channels, extent, last)
    assert space.numel == torch.empty(space.shape).numel()
    assert str(space) == ("×".join(map(str, space.shape)) or "scalar")


class Mixed(nn.Module):
    """Channels first, then last, then first again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8), nn.Linear(8, 5)
        self.back = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x)).permute(0, 2, 3, 1)
        return self.back(torch.tanh(self.linear(self.norm(y))).permute(0, 3, 1, 2))


def test_operations_tell_where_the_channels_are() -> None:
    captured = capture(Mixed(), torch.randn(2, 3, 6, 6))
    found = {
        node.name: space_of(node, captured.graph_module.get_submodule)
        for node in captured.graph.nodes
        if node.op != "output"
    }
    axes = {name: space.channel for name, space in found.items()}
    assert axes["x"] == axes["conv"] == axes["relu"] == 0
    assert axes["permute"] == axes["norm"] == axes["linear"] == axes["tanh"] == 2
    assert axes["permute_1"] == axes["back"] == 0


class Padded(nn.Module):
    """A signal that is padded before it is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (2, 0)))


class TokenMixer(nn.Module):
    """Convolves tokens between two linear layers; it is kept as one node."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x.transpose(1, 2)).transpose(1, 2))


def test_channels_stand_where_the_convolution_behind_padding_has_them() -> None:
    captured = capture(Padded(), torch.randn(2, 3, 12))
    node = next(node for node in captured.graph.nodes if node.op == "placeholder")
    assert space_of(node, captured.graph_module.get_submodule).channel == 0


class Turned(nn.Module):
    """A causal convolution between two moves of the axes."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move, self.pad, self.conv = move, nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.move(self.conv(self.pad(self.move(x)))))


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.transpose(1, 2),
    "permute": lambda x: x.permute(0, 2, 1),
    "movedim": lambda x: torch.movedim(x, 2, 1),
    "swapaxes": lambda x: torch.swapaxes(x, 1, 2),
    "mT": lambda x: x.mT,
    "adjoint": lambda x: x.adjoint(),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("tokens", [4, 6, 8])
def test_squares_have_their_channels_where_others_have_them(move: str, tokens: int) -> None:
    """As many tokens as channels: the shape does not show that axes were moved."""

    def channels(tokens: int) -> list[int]:
        model = nn.Sequential(nn.Linear(5, 6), *(Turned(MOVES[move]) for _ in range(3)), nn.Linear(6, 4))
        captured = capture(model, torch.randn(2, tokens, 5))
        nodes = [node for node in captured.graph.nodes if node.op != "output"]
        return [space_of(node, captured.graph_module.get_submodule).channel for node in nodes]

    assert channels(tokens) == channels(9)


def test_a_module_of_both_kinds_that_is_not_looked_into_says_nothing() -> None:
    captured = capture(nn.Sequential(TokenMixer(), nn.LayerNorm(6)), torch.randn(2, 12, 6), leaf_modules=[TokenMixer])
    node = next(node for node in captured.graph.nodes if node.op == "placeholder")
    assert space_of(node, captured.graph_module.get_submodule).channel == 1


class Inside(nn.Module):
    """A convolution over the tokens, between two transpositions; ``unread`` makes it one call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return x + self.conv(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("tokens, width", [(5, 6), (6, 6)])
def test_a_module_that_was_not_looked_into_may_move_axes(tokens: int, width: int) -> None:
    """By a convolution inside, tokens were taken for channels."""
    model = nn.Sequential(nn.Linear(4, width), *(Inside(width) for _ in range(3)), nn.Linear(width, 2))
    captured = capture(model, torch.randn(2, tokens, 4))
    assert captured.opaque
    nodes = [node for node in captured.graph.nodes if str(node.target) in captured.opaque]
    for node in nodes:
        assert space_of(node, captured.model.get_submodule) == Space(shape=(tokens, width), channel=1)


def test_a_module_that_was_not_looked_into_keeps_channels_first() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.seen = nn.Conv1d(6, 6, 3, padding=1), [0]

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(1)
            return x + self.conv(x)

    for length in (6, 9):
        captured = capture(nn.Sequential(nn.Conv1d(2, 6, 1), *(Block() for _ in range(3))), torch.randn(2, 2, length))
        nodes = [node for node in captured.graph.nodes if str(node.target) in captured.opaque]
        assert len(nodes) == 3
        assert all(space_of(node, captured.model.get_submodule).channel == 0 for node in nodes)


class Folded(nn.Module):
    """A block over the steps of each series, which are folded into the batch meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, series, steps, width = x.shape
        y = x.reshape(batch * series, steps, width)
        y = y + self.linear(self.norm(y.transpose(1, 2)).transpose(1, 2))
        return y.reshape(batch, series, steps, width)


def test_channels_behind_a_reshape_that_folds_other_axes() -> None:
    """Of four axes the first was taken for the channels, and adapters mixed series that the model keeps apart."""
    model = nn.Sequential(nn.Linear(4, 8), *(Folded() for _ in range(3)))
    captured = capture(model, torch.randn(2, 3, 5, 4))
    spaces = [
        space_of(node, captured.model.get_submodule)
        for node in captured.graph.nodes
        if str(getattr(node.meta.get("val"), "shape", "")) == "torch.Size([2, 3, 5, 8])"
    ]
    assert len(spaces) == 4
    assert {space.channel for space in spaces} == {2}
