"""What a network is apart from its weights: the same for every way to run it, another wherever it computes others."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import layer_parallel, pararealize, run_local
from pararealize.models import resnet20
from pararealize.train.structure import describe_structure, structure_facts
from tests.training import network


class Block(nn.Module):
    """Documented."""

    def __init__(self, activation, rate):
        super().__init__()
        self.linear, self.activation, self.rate = nn.Linear(4, 4), activation, rate

    def forward(self, x):
        return x + F.dropout(self.activation(self.linear(x)), self.rate, self.training)


class Other(Block):
    def forward(self, x):
        return x - F.dropout(self.activation(self.linear(x)), self.rate, self.training)


Other.__name__ = "Block"


def model(kind=Block, activation=torch.relu, rate=0.1, module=nn.ReLU):
    return nn.Sequential(*(kind(activation, rate) for _ in range(4)), module())


def frozen():
    net = model()
    net[0].linear.weight.requires_grad_(False)
    return net


def set_apart():
    net = model()
    net[0].linear.eval()
    return net


def described(*nets):
    return describe_structure([structure_facts(net) for net in nets])


def test_networks_of_the_same_shapes_that_compute_other_values():
    networks = [
        model(), model(activation=torch.tanh), model(rate=0.2), model(module=nn.GELU), model(Other), frozen(),
        set_apart(), model().double(),
    ]  # fmt: skip
    for make in (lambda net: net, lambda net: pararealize(net, 2, coarse="linear", example_inputs=_example(net))):
        texts = [str(described(make(net))) for net in networks]
        assert len(set(texts)) == len(networks)
        assert str(described(make(model()))) == texts[0]


def _example(net):
    return torch.zeros(2, 4, dtype=next(net.parameters()).dtype)


def test_it_is_the_same_for_every_way_to_run_a_network():
    net, layers = network(coarse="exact"), layer_parallel(resnet20(), coarsening=3)
    assert described(run_local(net)) == described(net)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for one in (net, layers):
            stage = one.distribute(mesh)
            assert described(stage) == described(one)
            stage.close()
    finally:
        dist.destroy_process_group()


def test_ranks_describe_one_network():
    facts = structure_facts(network())
    halves = [dict(list(facts.items())[40:]), dict(list(facts.items())[:50])]
    assert describe_structure(halves) == describe_structure([facts])
