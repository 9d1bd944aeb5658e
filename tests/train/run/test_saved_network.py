"""A run's folder holds the trained network, of one process and of several, as ``net.save`` writes it."""

import torch
from torch import nn

from pararealize import Recipe, fit, load, load_original, pararealize
from pararealize.data import load as load_data
from tests.models import Perceptron
from tests.rank_comparison import mesh_of
from tests.ranks import on_ranks

RECIPE = Recipe(epochs=1, lr=0.05, initialise=None)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 8), *Perceptron(depth=4), nn.Linear(2, 5))


def data():
    return load_data("peaks", count=(64, 16), batch_size=32)


def trained(folder, mesh=None):
    net = pararealize(network(), 2, example_inputs=data().example())
    net.get_submodule("0").weight.requires_grad_(False)
    net = net if mesh is None else net.distribute(mesh, timeout=30)
    fit(net, data(), RECIPE, folder=folder, tensorboard=False)
    return net


def test_a_converted_network(tmp_path):
    net = trained(tmp_path / "run")
    again, x = load(tmp_path / "run", network()), data().example(8)
    assert torch.equal(again(x), net(x))
    assert not again.get_submodule("0").weight.requires_grad
    fit(net, data(), RECIPE, folder=tmp_path / "run", resume=True, tensorboard=False)  # its end again
    assert torch.equal(load(tmp_path / "run", network())(x), net(x))


def test_an_original(tmp_path):
    net = network()
    fit(net, data(), RECIPE, folder=tmp_path / "run", tensorboard=False)
    assert torch.equal(load_original(tmp_path / "run", network())[0].weight, net[0].weight)


def on_two(folder):
    trained(folder, mesh_of(2))


def test_parts_on_several_ranks(tmp_path):
    on_ranks(2, on_two, str(tmp_path / "run"))
    again = load(tmp_path / "run", network())
    alone = trained(tmp_path / "alone")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)
    frozen = {name for name, parameter in again.named_parameters() if not parameter.requires_grad}
    assert frozen == {"0.weight"}
