"""Every hook of the model is run by its conversion as often, with the same effect, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import layer_parallel, pararealize, restack, run_local
from pararealize.errors import CaptureError, DistributedError, ModelError, MultigridError
from pararealize.tracing.front_end import capture
from pararealize.tracing.hooks import copy_tensor_hooks, describe_hook, hook_of
from tests.tracing.effects import assert_same

CALLS: list[str] = []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


def model_of_blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(5)), nn.Linear(8, 3))


def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    CALLS.append("forward")
    return output * 2


def shift(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    CALLS.append("forward-pre")
    return (args[0] + 1,)


def scale(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
    CALLS.append("with kwargs")
    return output * 0.5


def halve(module: nn.Module, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...]) -> Any:
    CALLS.append("backward")
    return tuple(None if gradient is None else gradient * 0.5 for gradient in inputs)


def triple(module: nn.Module, outputs: tuple[Tensor, ...]) -> Any:
    CALLS.append("backward-pre")
    return (outputs[0] * 3,)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(double),
    "forward-pre": lambda module: module.register_forward_pre_hook(shift),
    "with kwargs": lambda module: module.register_forward_hook(scale, with_kwargs=True, prepend=True),
    "always called": lambda module: module.register_forward_hook(double, always_call=True),
    "backward": lambda module: module.register_full_backward_hook(halve),
    "backward-pre": lambda module: module.register_full_backward_pre_hook(triple),
}


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


PLACES = {"the model": "", "a block": "2", "a layer": "3.linear", "the stem": "0"}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("place", PLACES)
def test_a_hook_runs_once_a_call_with_the_same_effect(kind: str, place: str) -> None:
    model, x = model_of_blocks(), torch.randn(4, 8)
    HOOKS[kind](model.get_submodule(PLACES[place]))
    same = [pararealize(model, n=1, example_inputs=x), restack(model, "euler", example_inputs=x)]
    same += [copy.deepcopy(same[0]), run_local(same[0], x)]
    if place != "a layer":
        same.append(layer_parallel(model, example_inputs=x, exact=True, coarsening=2))
    assert_same(model, same, x)
    other = pararealize(model, n=3, coarse="linear", example_inputs=x)
    counts = []
    for net in (model, *same, other):
        CALLS.clear()
        net(x.clone().requires_grad_()).sum().backward()
        counts.append(list(CALLS))
    assert counts == [[CALLS[0]]] * len(counts)


def test_one_module_is_a_call_by_its_place_and_not_by_its_class() -> None:
    model, x = model_of_blocks(), torch.randn(4, 8)
    model[2].register_full_backward_hook(halve)
    net = pararealize(model, n=2, coarse="linear", example_inputs=x)
    opaque = net.plan.notes  # the plan is made whatever is opaque
    assert [name for name, module in net.named_modules() if hook_of(module)] == ["2"]
    assert opaque is not None


def test_containers_of_most_of_the_network_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.body = nn.Sequential(*(Block() for _ in range(5)))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.first(x))

    model, x = Net(), torch.randn(2, 8)
    model.body.register_forward_hook(double)
    with pytest.raises(
        CaptureError, match=r"body \(Sequential\) has a forward hook double .*test_hooks.py:\d+"
    ) as error:
        pararealize(model, n=1, example_inputs=x)
    assert "leaf_modules=['body']" in str(error.value)
    captured = capture(model, x, leaf_modules=["body"])  # the remedy works
    assert_same(model, [captured.graph_module], x)


def test_hooks_of_all_modules_are_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        with pytest.raises(ModelError, match=r"forward hook of all modules is registered, double .*handle.remove\(\)"):
            pararealize(model_of_blocks(), n=1, example_inputs=torch.randn(2, 8))
    finally:
        handle.remove()


@pytest.mark.parametrize("tied", [False, True])
def test_hooks_of_parameters_are_on_the_copies(tied: bool) -> None:
    model, x = model_of_blocks(), torch.randn(4, 8)
    weight = model[1].linear.weight
    if tied:
        model[3].linear.weight = weight
    weight.register_hook(lambda gradient: gradient * 0.1)
    steps = []
    weight.register_post_accumulate_grad_hook(lambda parameter: steps.append(parameter.grad.norm().item()))
    nets = [pararealize(model, n=1, example_inputs=x), restack(model, "euler", example_inputs=x)]
    assert_same(model, nets, x)
    steps.clear()
    for net in (model, *nets):
        net(x).sum().backward()
    assert len(steps) == 3
    assert nets[0].get_parameter("1.linear.weight")._backward_hooks is not weight._backward_hooks
    with pytest.raises(MultigridError, match=r"1.linear.weight has the hook .*lambda"):
        layer_parallel(model, example_inputs=x, coarsening=2)


def test_where_no_rank_has_all_of_it_a_hook_is_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh, x = init_device_mesh("cpu", (1,)), torch.randn(4, 8)
        model = model_of_blocks()
        model[1].linear.weight.register_hook(lambda gradient: gradient * 0.1)
        net = pararealize(model, n=2, coarse="linear", example_inputs=x)
        stage = net.distribute(mesh)
        stage.step(x, target=torch.zeros(4, 3), loss_fn=mean_square)
        mean_square(net(x), torch.zeros(4, 3)).backward()
        gradient = net.get_parameter("1.linear.weight").grad
        assert torch.allclose(stage.get_parameter("1.linear.weight").grad, gradient)
        net.register_forward_hook(double)
        with pytest.raises(DistributedError, match="the network has a forward hook double"):
            net.distribute(mesh)
        with pytest.raises(ModelError, match="iterations would not call"):
            net.iterate(x, 1)
    finally:
        dist.destroy_process_group()


def test_hooks_of_a_tensor_within_the_forward() -> None:
    class Scaled(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            if x.requires_grad:
                x.register_hook(lambda gradient: gradient * 0.1)
            return x

    model, x = model_of_blocks(), torch.randn(4, 8)
    model[2] = Scaled()
    assert_same(model, [pararealize(model, n=1, example_inputs=x)], x)


def test_a_hook_is_described_by_name_and_line() -> None:
    assert describe_hook(double).startswith("double (")
    assert "test_hooks.py" in describe_hook(double)
    frozen = torch.ones(2)
    copy_tensor_hooks(nn.Parameter(torch.ones(2)), frozen)
    assert not frozen._backward_hooks
