"""A recording cut into layers runs over the network's own modules, and another one has to have the same layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture, layer_parallel
from pararealize.errors import MultigridError, RecordingWarning
from pararealize.multigrid.pieces import LayerPieces, layers_anew, whole_graph
from pararealize.multigrid.solver.layers import find_layers

X, Y = torch.randn(4, 8), torch.randn(3, 5, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.head = nn.Linear(8, 2)
        self.fewer = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[: 4 if self.fewer else None]:
            x = x + torch.tanh(block(x)) / x.dim()
        return self.head(x)


def test_pieces_compute_what_the_model_does() -> None:
    model = Residual().eval()
    captured = capture(model, X)
    pieces = LayerPieces.of(model, find_layers(captured), whole_graph(captured))
    (u,) = pieces.stem(X)
    for row in pieces.rows:
        u = row.advance(u, row.f(u))
    torch.testing.assert_close(pieces.head(u), model(X))
    assert torch.equal(pieces.whole(X), model(X))


def test_other_layers_are_refused() -> None:
    model = Residual()
    before = find_layers(capture(model, X))
    net = layer_parallel(model, coarsening=2, example_inputs=X)
    conditions, pieces = layers_anew(net, before, capture(model, Y))
    assert conditions.hold((Y,), {})
    assert not conditions.hold((X,), {})
    assert len(pieces.rows) == 6
    model.fewer = True
    with pytest.raises(MultigridError, match=r"its layers are .* 4 blocks .*, and were .* 6 blocks"):
        layers_anew(net, before, capture(model, Y))


def test_a_network_of_layers_is_recorded_anew() -> None:
    model = Residual().eval()
    net = layer_parallel(model, coarsening=2, forward_iterations=3, backward_iterations=3, example_inputs=X)
    with pytest.warns(RecordingWarning, match="recorded anew"):
        net(Y)
    for x in (X, Y, X):
        torch.testing.assert_close(net(x), model(x))
        with net.serially():
            assert torch.equal(net(x), model(x))
    net(Y).square().sum().backward()
    model(Y).square().sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(net.get_parameter(key).grad, parameter.grad)
