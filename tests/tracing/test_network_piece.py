"""A piece that has the name of a module of the user's is called as a piece, and asked as that module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.tracing.network_piece import NetworkPiece, contents_of

X = torch.randn(3, 4, 5)


class Head(nn.Module):
    """Two layers, one of them called as one of the model's own is, and dropout by its own flag."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.p = nn.LayerNorm(4), nn.Linear(4, 3), 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.dropout(self.norm(x), self.p, self.training))


class Named(nn.Module):
    """A stem, a context, a head and a norm beside it, which the pieces run, and dropout by the root's flag."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5))
        self.context = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5))
        self.blocks = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(4))
        self.norm, self.head = nn.BatchNorm1d(4), Head()

    def forward(self, x: Tensor) -> Tensor:
        context = self.context(x)
        x = F.dropout(self.stem(x), 0.5, self.training)
        for block in self.blocks:
            x = x + torch.tanh(block(x) + context)
        return self.head(F.dropout(self.norm(x.mean(2)), 0.5, self.training))


def converted(model: nn.Module, n: int = 1) -> PararealModule:
    return pararealize(model, n=n, example_inputs=X, coarse="linear")


def output(model: nn.Module) -> Tensor:
    torch.manual_seed(3)
    result: Tensor = model(X)
    return result


def flags(model: nn.Module, like: nn.Module) -> dict[str, bool]:
    paths = dict(like.named_modules()).keys()
    return {path: module.training for path, module in model.named_modules() if path in paths}


def freeze(module: Any) -> None:
    for parameter in module.parameters():
        parameter.requires_grad = False


def set_flag(module: Any) -> None:
    module.training = not module.training


def set_inner_modes(module: Any) -> None:
    for inner in module.modules():
        inner.eval()


def fill(module: Any) -> None:
    nn.init.constant_(module.weight, 0.25) if isinstance(module, nn.Linear) else None


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "eval": lambda module: module.eval(),
    "train": lambda module: module.train(),
    "train(False)": lambda module: module.train(False),
    "flag": set_flag,
    "modules": set_inner_modes,
    "requires_grad_": lambda module: module.requires_grad_(False),
    "freeze": freeze,
    "apply": lambda module: module.apply(fill),
    "load": lambda module: module.load_state_dict({key: value * 2 for key, value in module.state_dict().items()}),
    "half and back": lambda module: module.half().float(),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", ["stem", "context", "head"])
def test_what_is_done_to_a_module_of_a_pieces_name_is_done_to_that_module(
    name: str, action: str, training: bool
) -> None:
    """``net.head.train()`` reached the piece, whose flag was the root's: the root's dropout was on in eval mode."""
    torch.manual_seed(0)
    model = Named()
    net = converted(model)
    for network in (model, net):
        network.train(training)
        ACTIONS[action](getattr(network, name))
    assert flags(net, model) == flags(model, model)
    assert getattr(net, name).training == getattr(model, name).training
    learns = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in net.named_parameters()} == learns
    assert all(torch.equal(net.state_dict()[key], value) for key, value in model.state_dict().items())
    assert torch.allclose(output(net), output(model), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2])
def test_its_names_are_those_of_the_module(n: int) -> None:
    """The piece has a ``norm`` too, which is the root's, and a ``head``."""
    net = converted(Named(), n)
    modules = dict(net.named_modules())
    assert net.head.norm is modules["head.norm"]
    assert net.stem[0] is modules["stem.0"]
    assert len(net.stem) == 2
    assert [name for name, _ in net.head.named_parameters()] == [name for name, _ in Head().named_parameters()]
    assert list(net.head.state_dict()) == list(Head().state_dict())
    assert {id(p) for p in contents_of(net.head).parameters()} > {id(p) for p in net.head.parameters()}
    net.head.p = 0.25
    assert modules["head"].p == 0.25


@pytest.mark.parametrize("n", [1, 2])
def test_the_pieces_own_flag_never_sets_the_roots(n: int) -> None:
    net = converted(nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.Dropout()) for _ in range(4))), n).eval()
    for piece in (net.stem, net.head, *net.segments.values()):
        assert isinstance(piece, NetworkPiece)
        piece.train()
        assert not net.training
        assert not piece.training
        piece.eval()
    net.train()
    assert all(piece.training for piece in (net.stem, net.head, *net.segments.values()))


class Tensors(nn.Module):
    """Parameters and a buffer that have the pieces' names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
        self.register_buffer("context", torch.randn(5))
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stem
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x * self.head + self.context)


def test_tensors_of_these_names() -> None:
    """``net.head.requires_grad_(False)`` froze all that the last piece runs."""
    model = Tensors()
    net = converted(model)
    for network in (model, net):
        network.head.requires_grad_(False)
        network.context.mul_(2)
        network.stem.data = torch.ones(5)
    learns = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in net.named_parameters()} == learns
    assert torch.allclose(net(X), model(X), atol=1e-6)


def test_a_copy_of_such_a_piece_is_its_own() -> None:
    net = converted(Named(), 2).eval()
    z = torch.randn(3, 4, 6)
    twin, whole = copy.deepcopy(net.head), copy.deepcopy(net)
    assert torch.equal(twin(z), net.head(z))
    net.head.train()
    assert not whole.head.training
    assert torch.equal(whole.head(z), twin(z))
