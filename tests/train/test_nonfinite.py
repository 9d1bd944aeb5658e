"""Where something became infinite: a fault put into each part in turn is found there."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
from torch import nn

from pararealize import layer_parallel, pararealize, run_local
from pararealize.distributed.training_processes import TrainingProcesses, processes_of
from pararealize.models import resnet20
from pararealize.train.nonfinite import backward_fault, forward_fault
from tests.models import StochasticDepth
from tests.rank_comparison import mesh_of
from tests.ranks import on_ranks
from tests.training import WIDTH, chain, network

PARTS = {
    "the stem C^1": "stem",
    "adapter C^2": "adapters.C2",
    "segment 1": "segments.g1",
    "segment 2": "segments.g2",
    "segment 3": "segments.g3",
    "coarse block F^1": "coarse.F1",
    "coarse block F^2": "coarse.F2",
    "the head": "head",
}


@functools.cache
def converted():
    torch.manual_seed(0)
    return pararealize(resnet20(num_classes=3), 3, coarse="linear")


def images():
    return copy.deepcopy(converted()), torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("where", PARTS)
@pytest.mark.parametrize("runtime", ["module", "local"])
def test_forward(where, runtime):
    net, x = images()
    part = net.get_submodule(PARTS[where])
    part.register_forward_hook(lambda _, __, y: y * math.inf)
    buffers = [buffer.clone() for buffer in net.buffers()]
    fault = forward_fault(net if runtime == "module" else run_local(net), x, TrainingProcesses())
    assert fault.where.partition(" (")[0] == where
    assert not fault.weights
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers, strict=True))
    assert len(part._forward_hooks) == 1


@dataclasses.dataclass
class Output:
    """What a network may give."""

    logits: torch.Tensor


class Dividing(nn.Linear):
    """A layer that divides by zero, within a dataclass."""

    def forward(self, x):
        return Output(super().forward(x) / 0)


def test_outputs_in_dataclasses_are_looked_into():
    assert forward_fault(Dividing(2, 2), torch.ones(1, 2), TrainingProcesses()).where == "Dividing"


def test_the_first_module_in_the_part_is_named():
    net, x = images()
    net.get_submodule("stage2.1.conv2").register_forward_hook(lambda _, __, y: y / 0)
    fault = forward_fault(net, x, TrainingProcesses())
    assert fault.where.startswith("segment 2 (stage1.2 to")
    assert str(fault) == f"{fault.where}, at stage2.1.conv2"


def test_weights_that_are_not_finite_are_told():
    net, x = images()
    with torch.no_grad():
        net.get_parameter("stage3.1.conv1.weight")[0] = math.nan
    fault = forward_fault(net, x, TrainingProcesses())
    assert fault.where.startswith("segment 3")
    assert str(fault).endswith("at stage3.1.conv1, whose weights are not finite")


def test_a_batch_that_is_not_finite():
    net, x = images()
    x[0] = math.nan
    assert forward_fault(net, x, TrainingProcesses()).where == "the batch"


def test_a_loss_of_finite_logits():
    net, x = images()
    assert forward_fault(net, x, TrainingProcesses()).where == "the loss"
    assert backward_fault(net, TrainingProcesses()).where == "the loss"


def test_an_original_names_its_first_module():
    net = chain()
    net[8].register_forward_hook(lambda _, __, y: y * math.nan)
    fault = forward_fault(net, torch.randn(4, WIDTH), TrainingProcesses())
    assert str(fault) == "8"


class Late(nn.Module):
    """Modules that are called in another order than they were made in, and by names that parts have."""

    def __init__(self):
        super().__init__()
        self.head, self.g1 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.head(self.g1(x))


def test_an_originals_modules_are_taken_in_the_order_of_calls():
    net = Late()
    for module in (net.head, net.g1):
        module.register_forward_hook(lambda _, __, y: y * math.nan)
    assert forward_fault(net, torch.randn(4, WIDTH), TrainingProcesses()).where == "g1"


@pytest.mark.parametrize(
    "where, parameter",
    [
        ("the head", "fc.weight"),
        ("coarse block F^2", "coarse.F2.project.conv.weight"),
        ("segment 3", "stage3.0.conv1.weight"),
        ("segment 1", "stage1.0.conv2.weight"),
        ("adapter C^2", "adapters.C2.project.weight"),
        ("the stem C^1", "conv1.weight"),
    ],
)
def test_backward(where, parameter):
    net, x = images()
    net.get_parameter(parameter).register_hook(lambda gradient: gradient * math.inf)
    net(x).square().mean().backward()
    fault = backward_fault(net, TrainingProcesses())
    assert fault.where.partition(" (")[0] == where
    assert fault.module == parameter


def test_gradients_pass_from_the_head_to_the_stem():
    net = network(dropout=0.0)
    for name in ("8.weight", "adapters.C2.project.weight", "16.weight"):
        if name in dict(net.named_parameters()):
            net.get_parameter(name).register_hook(lambda gradient: gradient * math.nan)
    net(torch.randn(4, WIDTH)).square().mean().backward()
    assert backward_fault(net, TrainingProcesses()).module == "16.weight"


def test_an_originals_gradients():
    net = chain()
    for name in ("4.weight", "12.bias"):
        net.get_parameter(name).register_hook(lambda gradient: gradient * math.nan)
    net(torch.randn(4, WIDTH)).square().mean().backward()
    assert str(backward_fault(net, TrainingProcesses())) == "12.bias"


LAYERS = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6) for _ in range(6))).eval()


def poisoned(stage, name):
    """What is told when a weight and the gradients of one part become non-finite, on the rank that has it."""
    modules = {part.name: module for part, module in stage.part_modules().items()}
    if name in modules:
        with torch.no_grad():
            next(modules[name].parameters())[0] = math.nan
    fault = forward_fault(stage, torch.ones(3, 6), processes_of(stage))
    for parameter in modules[name].parameters() if name in modules else ():
        parameter.grad = torch.full_like(parameter, math.inf)
    return str(fault), str(backward_fault(stage, processes_of(stage))), list(modules)


def over_ranks():
    mesh = mesh_of(2)
    layers = layer_parallel(LAYERS, 2, 2, example_inputs=torch.ones(2, 6), mesh=mesh)
    segments = pararealize(LAYERS, 3, example_inputs=torch.ones(2, 6), coarse="exact").distribute(mesh, timeout=30)
    return poisoned(layers, "f3"), poisoned(segments, "g2")


def test_a_rank_that_has_no_such_part_is_told_of_it():
    """Layers were once looked for among segments and coarse blocks, and the report itself failed."""
    first, second = on_ranks(2, over_ranks)
    for told, others, label in zip(first, second, ("layer 3", "segment 2 ("), strict=True):
        assert told[:2] == others[:2]
        assert told[0].startswith(label)
        assert told[0].endswith("whose weights are not finite")
        assert told[1].startswith(label)
        assert ", at " in told[1]
    names = [sorted(a[2] + b[2]) for a, b in zip(first, second, strict=True)]
    assert names[0] == ["f0", "f1", "f2", "f3", "f4", "f5", "head", "stem"]
    assert names[1] == ["C2", "C3", "g1", "g2", "g3", "head", "stem"], "F^j is g^{j+1} itself, and no part of its own"
