"""What of a network is a time step, a transition, stem or head; every piece together is the network."""

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture
from pararealize.errors import MultigridError
from pararealize.multigrid.solver.layers import Layers, find_layers
from pararealize.tracing.module_view import Piece
from tests.models import MaskedTransformer, SharedBias, SmallResNet


def run(model: nn.Module, layers: Layers, x: Tensor) -> Tensor:
    """The pieces one after the other."""
    u, *context = Piece(model, layers.stem)(x)
    for layer in layers.layers:
        k = Piece(model, layer.graph)(u, *(context[i] for i in layer.reads))
        u = k if layer.fixed else u + k
        u = torch.relu(u) if layer.post else u
    return Piece(model, layers.head)(u, *(context[i] for i in layers.head_reads))


@pytest.mark.parametrize(
    "make, x, expected",
    [
        (
            lambda: SmallResNet(3),
            torch.randn(2, 3, 8, 8),
            "stem, 3 blocks (layer1.0 – layer1.2), a transition, 2 blocks (layer2.1 – layer2.2), head",
        ),
        (lambda: MaskedTransformer(3), torch.randint(0, 11, (2, 7)), "stem, 3 blocks (layers.0 – layers.2), head"),
        (lambda: SharedBias(3), torch.randn(2, 6), "stem, 3 blocks ( – #3), head"),
    ],
)
def test_pieces_are_the_network(make, x: Tensor, expected: str) -> None:
    model = make().eval()
    layers = find_layers(capture(model, x))
    assert str(layers) == expected
    torch.testing.assert_close(run(model, layers, x), model(x))


class Net(nn.Module):
    """Residual blocks on vectors, wired by the case."""

    def __init__(self, wiring: str, depth: int = 5) -> None:
        super().__init__()
        self.wiring = wiring
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        u = self.stem(x)
        kept = u
        for i, block in enumerate(self.blocks):
            if self.wiring == "transition" and i == 2:
                u = torch.tanh(block(u))
            elif self.wiring == "opens in the middle" and i == 2:
                kept = u
                u = u + block(u)
            else:
                u = u + torch.tanh(block(u))
            if self.wiring == "closes in the middle" and i == 2:
                u = u * kept.sigmoid()
        return self.head(u + kept.sin() if self.wiring in ("around all", "opens in the middle") else u)


def test_a_transition_in_the_middle_is_a_fixed_layer() -> None:
    x = torch.randn(2, 3)
    model = Net("transition")
    layers = find_layers(capture(model, x))
    assert layers.fixed == (False, False, True, False, False)
    torch.testing.assert_close(run(model, layers, x), model(x))


@pytest.mark.parametrize("wiring, steps", [("opens in the middle", 2), ("closes in the middle", 2)])
def test_blocks_under_a_long_skip_are_left_as_they_are(wiring: str, steps: int) -> None:
    """Where another value is alive beside the state there is no time step: those blocks go into a neighbouring part."""
    x = torch.randn(2, 3)
    model = Net(wiring)
    layers = find_layers(capture(model, x))
    assert sum(not fixed for fixed in layers.fixed) == steps
    assert any("other activations are alive" in refusal.reason for refusal in layers.left)
    torch.testing.assert_close(run(model, layers, x), model(x))


def test_a_value_read_throughout_is_context() -> None:
    x = torch.randn(2, 3)
    model = Net("around all")
    layers = find_layers(capture(model, x))
    assert sum(not fixed for fixed in layers.fixed) >= 4
    torch.testing.assert_close(run(model, layers, x), model(x))


def test_random_layers_are_known() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
            self.drop = nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            for i, block in enumerate(self.blocks):
                x = x + (self.drop(block(x)) if i % 2 else block(x))
            return x

    layers = find_layers(capture(Dropped(), torch.randn(2, 3)))
    assert [layer.random for layer in layers.layers] == [False, True, False, True]
    assert not any(layer.random_in_eval for layer in layers.layers)


def test_one_block_alone_is_refused() -> None:
    with pytest.raises(MultigridError, match="one residual block alone"):
        find_layers(capture(Net("", depth=1), torch.randn(2, 3)))


class Post(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(3, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + torch.tanh(self.linear(x)))


def halve(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output * 0.5


def test_hooks_behind_blocks_are_called_or_refused() -> None:
    model, x = nn.Sequential(*[Post() for _ in range(4)]), torch.randn(2, 3)
    model[1].relu.register_forward_hook(halve)
    layers = find_layers(capture(model, x))
    assert layers.fixed == (False, False, True, False, False)
    torch.testing.assert_close(run(model, layers, x), model(x))
    model[0].relu.register_forward_hook(halve)
    model[2].relu.register_forward_hook(halve)
    with pytest.raises(MultigridError, match=r"of Sequential: 0.relu \(ReLU\) has a forward hook halve \(.*, 1.relu"):
        find_layers(capture(model, x))


class Stateful(Post):
    def forward(self, x: Tensor) -> Tensor:
        self.loss = (f := torch.tanh(self.linear(x))).square().mean()
        return x + f


def test_blocks_that_are_one_call_are_named_and_why() -> None:
    x = torch.randn(2, 3)
    why = r"is seen: 0, 1, 2 and 1 more \(it keeps a computed tensor in the attribute 'loss'.*\); take what"
    with pytest.raises(MultigridError, match=why):
        find_layers(capture(nn.Sequential(*[Stateful() for _ in range(4)]), x))
    mixed = nn.Sequential(Post(), Stateful(), Post(), Stateful(), Post())
    with pytest.raises(MultigridError, match=r"no two are in a row, .* is seen: 1, 3 \(it keeps"):
        find_layers(capture(mixed, x))


@pytest.mark.parametrize("turn", [lambda x: x.transpose(0, 1), lambda x: x.reshape(-1, 2, 3)])
def test_values_without_a_leading_batch_say_so(turn) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Linear(3, 3), nn.Sequential(*[Post() for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(turn(self.stem(x))).sum()

    with pytest.raises(MultigridError, match=r"before or behind it: the batch is not its leading dimension") as error:
        find_layers(capture(Turned(), torch.randn(2, 6, 3)))
    assert "alive" not in str(error.value)
