"""The emitted module is an ordinary module, keeps names, and trains every parameter."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from pararealize import PararealModule, pararealize
from pararealize.errors import ModelError
from tests.models import MaskedTransformer, Perceptron, SharedBias, SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)
NETWORKS = {
    "convolutions": (SmallResNet, IMAGES),
    "masks": (MaskedTransformer, torch.randint(0, 11, (4, 5))),
    "shared values": (SharedBias, torch.randn(4, 6)),
    "vectors": (Perceptron, torch.randn(4, 8)),
}


def small(n: int = 3, **options: object) -> PararealModule:
    return pararealize(SmallResNet(), n=n, example_inputs=IMAGES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("coarse", ["paper", "depthwise", "linear", "block", "exact"])
def test_every_kind_trains_every_parameter(name: str, coarse: str) -> None:
    make, x = NETWORKS[name]
    net = pararealize(make(), n=3, example_inputs=x, coarse=coarse)
    net.train()
    net(x).square().sum().backward()
    without = {key for key, parameter in net.named_parameters() if parameter.grad is None}
    assert without == set()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    optimiser.step()
    net.eval()
    assert net(x[:1]).shape[0] == 1
    assert net(torch.cat([x, x, x])).shape[0] == 12


def test_names_in_the_state_dict() -> None:
    model = SmallResNet()
    net = pararealize(model, n=3, example_inputs=IMAGES)
    added = [key for key in net.state_dict() if key not in model.state_dict()]
    assert [key for key in net.state_dict() if key in model.state_dict()] == list(model.state_dict())
    assert {key.split(".")[0] for key in added} == {"adapters", "coarse"}
    assert {".".join(key.split(".")[:2]) for key in added} == {"adapters.C2", "adapters.C3", "coarse.F1", "coarse.F2"}
    assert list(net.original_state_dict()) == list(model.state_dict())
    assert [key for key, _ in net.named_parameters()] == [
        k for k in net.state_dict() if k in dict(net.named_parameters())
    ]
    assert len(list(net.parameters())) == len({id(p) for p in net.parameters()})
    model.load_state_dict(net.original_state_dict())


def test_the_model_is_not_shared() -> None:
    model = SmallResNet()
    before = copy.deepcopy(model.state_dict())
    net = pararealize(model, n=2, example_inputs=IMAGES)
    torch.optim.SGD(net.parameters(), lr=1.0).zero_grad()
    net(IMAGES).sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_deep_copies_are_independent_and_equal() -> None:
    net = small().eval()
    twin = copy.deepcopy(net)
    assert torch.equal(net(IMAGES), twin(IMAGES))
    assert type(twin.segments["g1"]).__name__ == "g1"
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert not torch.equal(net(IMAGES), twin(IMAGES))
    assert not {id(p) for p in net.parameters()} & {id(p) for p in twin.parameters()}
    twin.train()
    assert not net.segments["g1"].training
    assert twin.segments["g1"].training


def test_it_is_not_pickled() -> None:
    with pytest.raises(ModelError, match=r"saved by its parts.*state_dict"):
        pickle.dumps(small(1))
