"""A training step in one graph gives what the eager step gives; on a double of CUDA, or on a GPU."""

from __future__ import annotations

import copy
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pararealize import pararealize
from pararealize.errors import CaptureError, DeviceError, ExampleError, ModelError
from pararealize.network.local.graphed_step import capture_step
from pararealize.network.local.module import run_local
from tests import cuda_double
from tests.models import Perceptron, SmallResNet
from tests.network.local.test_module import MACHINES, NETWORKS, assert_same, convert, like, machine


def square(output: Any, target: Any = 0.0) -> Tensor:
    return (output - target).square().mean()


def eager(net: nn.Module, x: Tensor, target: Any, loss_fn: Callable[..., Tensor] = square) -> Tensor:
    loss = loss_fn(net(x), target)
    loss.backward()
    return loss.detach()


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def optimiser(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


def stack_of(depth: int, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)), nn.Linear(width, 2)
    )


CASES: dict[str, Any] = {
    "batch norms": ("convolutions", {"coarse": "linear"}, {}),
    "masks": ("masks", {"coarse": "block"}, {}),
    "windows": ("vectors", {"n": 2, "windows": 2, "coarse": "linear"}, {}),
    "stacked": ("vectors", {"coarse": "linear", "cuts": "paper"}, {"stack": True}),
}


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("case", CASES)
def test_training_in_one_graph_is_training(case: str, device: str) -> None:
    name, options, ways = CASES[case]
    net, x = convert(name, device=device, **options)
    twin = copy.deepcopy(net)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    pair = [(net, optimiser(net)), (twin, optimiser(twin))]
    with machine(device) as double:
        step = capture_step(run_local(net, **ways) if ways else net, square, x, 1.0)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "left as found"
        assert torch.equal(state, torch.get_rng_state())
        assert all(parameter.grad is None for parameter in net.parameters())
        for _ in range(2):
            x = like(x)
            loss = step(x, target=1.0)
            pair[1][1].zero_grad()
            assert_same(loss, eager(twin, x, 1.0))
            assert not loss.requires_grad
            assert_same(gradients(net), gradients(twin))
            assert_same(step.output, twin(x).detach()) if case == "stacked" else None
            for _, optimizer in pair:
                optimizer.step()
        assert double is None or [graph.replays for graph in double.graphs] == [2]
    assert_same(dict(net.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("device", MACHINES)
def test_gradients_are_accumulated_clipped_and_put_back(device: str) -> None:
    """By a module that is no converted network, with labels, of which a parameter is unused."""
    model, x = SmallResNet().to(device), NETWORKS["convolutions"][1].to(device)
    model.unused = nn.Parameter(torch.ones(3, device=device))  # type: ignore[assignment]
    twin, labels = copy.deepcopy(model), torch.tensor([0, 1, 2, 1], device=device)
    pair = [(model, optimiser(model)), (twin, optimiser(twin))]
    with machine(device):
        step = capture_step(model, cross_entropy, x, labels)
        for round_ in range(4):
            pair[1][1].zero_grad()
            if round_ == 2:
                pair[0][1].zero_grad()  # to None
            if round_ == 3:
                pair[0][1].zero_grad(set_to_none=False)
            for i in range(3):
                x, labels = torch.randn_like(x), labels.roll(1)
                loss = step(x, target=labels, accumulate=i > 0 or round_ == 3)
                assert_same(loss, eager(twin, x, labels, cross_entropy))
            for net, _ in pair:
                nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            assert_same(gradients(model), gradients(twin))
            assert model.unused.grad is None
            for _, optimizer in pair:
                optimizer.step()
        step.release()
        kept = gradients(model)
        assert all(p.grad is None or torch.equal(p.grad, kept[name]) for name, p in model.named_parameters())  # type: ignore[arg-type]
        assert_same(step(x, target=labels), eager(twin, x, labels, cross_entropy))


@pytest.mark.parametrize("device", MACHINES)
def test_autocast_and_a_scaler_are_as_in_an_eager_step(device: str) -> None:
    net, x = convert("vectors", device=device)
    twin = copy.deepcopy(net)
    scaler = torch.amp.GradScaler(device, init_scale=8.0)
    with machine(device) as double:
        with torch.autocast(device, dtype=torch.bfloat16):
            step = capture_step(net, square, x, 1.0)
        for scaled in (False, True, False):
            twin.zero_grad()
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = step(x, target=1.0, scaler=scaler if scaled else None)
                expected = square(twin(x), 1.0)
            (scaler.scale(expected) if scaled else expected).backward()
            torch.testing.assert_close(loss, expected.detach(), rtol=1e-2, atol=1e-3)
            for ours, theirs in zip(gradients(net).values(), gradients(twin).values(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
            with torch.no_grad():
                for p, q in zip(net.parameters(), twin.parameters(), strict=True):  # no cast weights are kept
                    p.mul_(0.5), q.mul_(0.5)
        replays = None if double is None else double.graphs[0].replays
        step(x, target=1.0)  # outside of autocast: eagerly
        assert double is None or double.graphs[0].replays == replays == 3


def test_dropout_draws_anew_in_every_replay() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(3)), nn.Linear(8, 2))
    net = pararealize(model, n=2, example_inputs=torch.randn(4, 8), coarse="linear")
    x = torch.randn(4, 8)
    with cuda_double.cuda_on_the_cpu():
        step = capture_step(net, square, x)
        step(x)
        first = step.output.clone()
        step(x)
        assert not torch.equal(first, step.output)


@pytest.mark.parametrize("device", MACHINES)
def test_what_does_not_fit_runs_eagerly(device: str) -> None:
    net, x = convert(device=device)
    twin = copy.deepcopy(net)
    with machine(device) as double:
        step = capture_step(net, square, x, 0.0)
        for other in (x[:3], torch.cat([x, x])):
            twin.zero_grad()
            assert_same(step(other, target=0.0), eager(twin, other, 0.0))
            assert_same(gradients(net), gradients(twin))
        net.eval(), twin.eval()
        twin.zero_grad()
        assert_same(step(x, target=0.0), eager(twin, x, 0.0))
        net.train(), twin.train()
        assert double is None or double.graphs[0].replays == 0
        assert_same(step(x, target=0.0, accumulate=True), eager(twin, x, 0.0))  # to what an eager step left
        assert_same(gradients(net), gradients(twin))


@pytest.mark.parametrize("how", ["to", "assign", "frozen", "one of them", "a mode"])
def test_what_was_moved_is_noticed(how: str) -> None:
    net, x = stack_of(40), torch.randn(4, 8)
    with cuda_double.cuda_on_the_cpu():
        step = capture_step(net, square, x)
        net.load_state_dict(copy.deepcopy(net.state_dict()))  # in place: they are where they were
        step(x)
        step.check()
        if how == "to":
            net.double().float()
        elif how == "assign":
            net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
        elif how == "frozen":
            net.requires_grad_(False)
        elif how == "one of them":
            net.get_submodule("17.0").bias = nn.Parameter(torch.zeros(8))
        else:
            net.get_submodule("17.0").eval()
        with pytest.raises(ModelError, match="moved, replaced or frozen"):
            step.check()
        with pytest.raises(ModelError, match="moved, replaced or frozen"):  # noqa: PT012
            for _ in range(step.stamp.calls if how in ("one of them", "a mode") else 1):
                step(x)


def host_operations(depth: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Calls of Python and C functions in one replay and in the same eager step; a graph's replay counts as one."""
    net = pararealize(stack_of(depth), n=3, example_inputs=torch.randn(4, 8), coarse="linear")
    x, counts = torch.randn(4, 8), []
    with cuda_double.cuda_on_the_cpu():
        step = capture_step(net, square, x)
        step(x)
        monkeypatch.setattr(cuda_double.Graph, "replay", lambda graph: None)
        for run in (lambda: step(x), lambda: eager(net, x, 0.0)):
            seen = Counter[str]()
            sys.setprofile(lambda frame, event, argument, seen=seen: seen.update([event]))
            try:
                run()
            finally:
                sys.setprofile(None)
            counts.append(seen["call"] + seen["c_call"])
        monkeypatch.undo()
    return counts[0], counts[1]


def test_work_of_the_host_in_a_replay_does_not_grow_with_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    small, small_eager = host_operations(20, monkeypatch)
    large, large_eager = host_operations(60, monkeypatch)
    assert abs(small - large) < 10  # the parameters that are looked at lie at other depths
    assert large_eager > 2 * small_eager


@pytest.mark.parametrize("kind", ["converted", "any module"])
def test_what_cannot_be_captured_is_refused(kind: str) -> None:
    x = torch.randn(4, 8)
    original = pararealize(Perceptron(), n=3, example_inputs=x) if kind == "converted" else Perceptron()

    def network() -> nn.Module:
        return copy.deepcopy(original)

    with pytest.raises(DeviceError, match="need a network on GPUs, and this one is on cpu"):
        capture_step(network(), square, x)
    with cuda_double.cuda_on_the_cpu():
        hooked = network()
        next(iter(hooked.children())).register_forward_hook(lambda *_: None)
        with pytest.raises(CaptureError, match="has hooks, which would not run"):
            capture_step(hooked, square, x)
        hooked = network()
        next(hooked.parameters()).register_hook(lambda gradient: gradient)
        with pytest.raises(CaptureError, match="parameters of Perceptron have hooks"):
            capture_step(hooked, square, x)
        with pytest.raises(CaptureError, match="no parameter of Perceptron can be differentiated"):
            capture_step(network().requires_grad_(False), square, x)
        state = random.getstate()
        with pytest.raises(CaptureError, match="draws random numbers on the host"):
            capture_step(network(), lambda y: square(y) * random.random(), x)
        assert random.getstate() == state
        losses: dict[str, Callable[..., Any]] = {
            "a tensor of shape": lambda y: y,
            "float": lambda y: 1.0,
            "without a graph": lambda y: y.detach().mean(),
        }
        for what, loss_fn in losses.items():
            with pytest.raises(CaptureError, match=f"loss_fn gave .*{what}"):
                capture_step(network(), loss_fn, x)
        with pytest.raises(ExampleError, match="no example inputs"):
            capture_step(network(), square, None)
        step = capture_step(network(), square, x, 0.0)
        with pytest.raises(CaptureError, match="was captured with a target"):
            step(x)
