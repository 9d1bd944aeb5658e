"""A piece shares the tree that it looks into: parameters, modes, moves."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.errors import ModelError
from pararealize.tracing.module_view import ContainerView, Piece
from tests.models import SharedBias, SmallResNet, StochasticDepth

IMAGES = torch.randn(4, 3, 8, 8)


def small(n: int = 3, **options: object) -> PararealModule:
    return pararealize(SmallResNet(), n=n, example_inputs=IMAGES, **options)  # type: ignore[arg-type]


def test_a_piece_can_be_copied_alone() -> None:
    net = pararealize(SharedBias(), n=2, example_inputs=torch.randn(3, 6), coarse="linear")
    segment = net.segments["g2"]
    twin = copy.deepcopy(segment)
    x, context = torch.randn(3, 6), (torch.randn(6, 6), torch.randn(3, 6))
    size = sum(1 for node in segment.graph.nodes if node.op == "placeholder")
    assert torch.equal(twin(x, *context[: size - 1]), segment(x, *context[: size - 1]))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in net.parameters()}
    twin.eval()
    assert segment.training


def test_a_child_is_found_without_a_search() -> None:
    segment = small().segments["g2"]
    for piece in (segment, copy.deepcopy(segment)):
        views = [module for module in piece.modules() if isinstance(module, ContainerView | Piece)]
        children = [(view, name, child) for view in views for name, child in view._modules.items()]
        assert len(children) > len(views) > 1
        assert all(view.__dict__[name] is child for view, name, child in children)


class Named(nn.Module):
    """A block whose layer has a given name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(6, 6))
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(self._name)(x))


@pytest.mark.parametrize("name", ["adopt", "mirror", "borrow", "recompile", "graph", "code", "lender", "origin"])
def test_modules_may_have_any_name(name: str) -> None:
    model = nn.Sequential(*(Named(name) for _ in range(4)))
    x = torch.randn(3, 6)
    assert torch.equal(pararealize(model, n=1, example_inputs=x)(x), model(x))


@pytest.mark.parametrize("name", ["adopt", "mirror", "borrow"])
def test_modules_at_the_top_too(name: str) -> None:
    model = Named(name)
    x = torch.randn(3, 6)
    assert torch.equal(pararealize(model, n=1, example_inputs=x)(x), model(x))


@pytest.mark.parametrize("name", ["recompile", "graph", "code"])
def test_but_for_names_of_graph_modules_there(name: str) -> None:
    with pytest.raises(ModelError, match=rf"top-level names \['{name}'\]"):
        pararealize(Named(name), n=1, example_inputs=torch.randn(3, 6))


def test_modes_reach_every_piece() -> None:
    model = nn.Sequential(*(StochasticDepth() for _ in range(4)))
    net = pararealize(model, n=2, example_inputs=torch.randn(4, 6))
    x = torch.randn(4, 6)
    net.eval()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))
    assert all(piece.training for piece in (net.stem, net.head, *net.segments.values()))


def test_moving_and_casting_reach_every_piece() -> None:
    net = small().double()
    assert net(IMAGES.double()).dtype == torch.float64
    net.to("meta")
    assert net(IMAGES.to("meta").double()).device.type == "meta"
    net.to_empty(device="cpu")
    assert net(IMAGES.double()).shape == (4, 3)


def test_a_head_of_the_model_stays_reachable() -> None:
    class Headed(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.body = nn.Sequential(*(StochasticDepth(4) for _ in range(3)))
            self.head = nn.Linear(4, 2)

    net = pararealize(Headed(), n=2)
    assert net.get_parameter("head.weight").shape == (2, 4)
    assert net.head.weight is dict(net.named_parameters())["head.weight"]
    assert list(net.original_state_dict()) == list(Headed().state_dict())
    assert net(torch.randn(3, 4)).shape == (3, 2)


def test_constants_move_with_the_network() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.scale = torch.full((4,), 2.0)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x) * self.scale + torch.arange(4, device=x.device)
            return x

    model = Scaled()
    net = pararealize(model, n=1, example_inputs=torch.randn(2, 4))
    x = torch.randn(3, 4)
    assert torch.equal(net(x), model(x))
    assert list(net.state_dict()) == list(model.state_dict())
    assert net.to("meta")(x.to("meta")).device.type == "meta"
    assert isinstance(model.scale, Tensor)
    assert model.scale.device.type == "cpu"


class Tabled(nn.Module):
    """Reads a tensor that is an attribute of no module, or of one whose class has another thing of that name."""

    shared = torch.linspace(1, 2, 4)
    hidden: Tensor | None = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer, self.name = nn.Linear(4, 4), name
        if name not in ("shared", "cached"):
            setattr(self, name, torch.linspace(1, 2, 4))

    @functools.cached_property
    def cached(self) -> Tensor:
        return torch.linspace(1, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x)) * getattr(self, self.name)


@pytest.mark.parametrize("name", ["shared", "cached", "hidden", "own"])
def test_constants_are_found_under_any_name_and_in_copies(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), *(Tabled(name) for _ in range(4)), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    expected = model(x)
    net = pararealize(model, n=2, example_inputs=x, coarse="block")  # which copies blocks
    torch.testing.assert_close(net.iterate(x, 1), expected)
    assert net(x).shape == (3, 2)
    assert net.to(torch.float64)(x.double()).dtype == torch.float64
    assert not [key for key in net.state_dict() if "constant" in key or name in key]


@pytest.mark.parametrize("name", ["graph", "plan", "coarse", "segments"])
def test_constants_at_the_top_may_have_names_that_the_network_needs(name: str) -> None:
    class Top(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * getattr(self, name)

    model = Top(nn.Linear(4, 4), nn.Linear(4, 4))
    setattr(model, name, torch.linspace(1, 2, 4))
    x = torch.randn(3, 4)
    assert torch.equal(pararealize(model, n=1, example_inputs=x)(x), model(x))


def test_modules_shared_across_devices_are_borrowed() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(4, 4), StochasticDepth(4, 0.0), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(4):
                x = self.layer(x)
            return self.last(x)

    net = pararealize(Shared(), n=2, devices=["cpu", "meta"])
    assert net.get_parameter("layer.linear.weight").device.type == "cpu"
    assert net.segments["g2"](torch.randn(2, 4, device="meta")).device.type == "meta"
    assert "Borrowed" in repr(net.segments["g2"])


def test_a_piece_has_the_tensors_that_it_reads_and_no_others() -> None:
    """Containers on the way to a layer lend it their name, not their own parameters."""
    net = pararealize(SharedBias(), n=2, example_inputs=torch.randn(3, 6), coarse="linear")
    read = {name: sorted(key for key, _ in net.segments[name].named_parameters()) for name in net.segments}
    assert "table" not in {key for keys in read.values() for key in keys}, "the context alone reads it"
    assert net.context is not None
    assert [key for key, _ in net.context.named_parameters()] == ["table"]
    layers = [f"layers.{i}.{kind}" for i in range(4) for kind in ("bias", "weight")]
    assert sorted([*read["g1"], *read["g2"]]) == ["last.bias", "last.weight", *layers]
