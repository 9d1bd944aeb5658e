"""A network run in this process gives what it gives anyway: outputs, gradients, buffers, names, copies.

What needs CUDA runs on the double of ``cuda_double.py``, and the same once more on a GPU where there is one.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.errors import CaptureError, DeviceError, ExampleError, ModelError, PlanError
from pararealize.network.local.module import LocalModule, capture_graphs, run_local
from tests.cuda_double import cuda_on_the_cpu
from tests.models import MaskedTransformer, Perceptron, SharedBias, SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)


class Undropped(MaskedTransformer):
    """Without dropout, so that two runs agree."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.dropout = 0.0


NETWORKS = {
    "convolutions": (SmallResNet, IMAGES),
    "masks": (Undropped, torch.randint(0, 11, (4, 5))),
    "shared values": (SharedBias, torch.randn(4, 6)),
    "vectors": (Perceptron, torch.randn(4, 8)),
}
REAL = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), id="on a GPU"
)
MACHINES = [pytest.param("cpu", id="on the double"), REAL]


@contextlib.contextmanager
def machine(device: str) -> Iterator[Any]:
    """The double, or a real GPU and ``None``."""
    if device == "cpu":
        with cuda_on_the_cpu() as double:
            yield double
    else:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield None


def convert(
    name: str = "convolutions", n: int = 3, device: str = "cpu", **options: Any
) -> tuple[PararealModule, Tensor]:
    make, x = NETWORKS[name]
    net = pararealize(make(), n=n, example_inputs=x, **options)
    return (net, x) if "devices" in options else (net.to(device), x.to(device))


def step(run: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Output and gradients of one training step."""
    run.zero_grad()
    output = run(x)
    output.square().sum().backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in run.named_parameters()}
    return output.detach().clone(), gradients


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def like(x: Tensor) -> Tensor:
    return torch.randn_like(x) if x.is_floating_point() else torch.randint_like(x, 1, 11)


# The module itself --------------------------------------------------------------------------------------------------


def test_it_has_the_networks_contents_names_and_mode() -> None:
    net, x = convert()
    local = run_local(net)
    assert list(local.state_dict()) == list(net.state_dict())
    assert [id(p) for p in local.parameters()] == [id(p) for p in net.parameters()]
    assert_same(step(local, x), step(copy.deepcopy(net), x))
    local.eval()
    assert not net.training
    assert not net.layer1[0].bn1.training
    assert torch.equal(local(x), net(x))
    assert torch.equal(local(x=x), net(x=x))
    assert local.plan is net.plan
    local.double()
    assert next(net.parameters()).dtype == torch.float64
    assert local.release() is net
    with pytest.raises(AttributeError):
        _ = local.no_such_thing


def test_within_another_module_and_copied() -> None:
    net, x = convert("vectors", coarse="linear", cuts="paper")
    outer = nn.Sequential(run_local(net, stack=True), nn.Linear(2, 1))
    twin = copy.deepcopy(outer)
    assert torch.equal(outer(x), twin(x))
    twin.train(False).requires_grad_(False)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in outer.parameters()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(outer(x), twin(x))
    with pytest.raises(ModelError, match="saved by its parts"):
        pickle.dumps(outer[0])


# Graphs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("graphs", ["whole", "parts"])
@pytest.mark.parametrize("name, coarse", [("convolutions", "linear"), ("masks", "block"), ("shared values", "exact")])
def test_training_with_graphs_is_training(name: str, coarse: str, graphs: Any, device: str) -> None:
    net, x = convert(name, coarse=coarse, device=device)
    twin = copy.deepcopy(net)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    optimisers = [torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9) for network in (net, twin)]
    with machine(device):
        local = capture_graphs(net, x, graphs=graphs)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "left as found"
        assert torch.equal(state, torch.get_rng_state())
        assert all(parameter.grad is None for parameter in net.parameters())
        for i in range(4):
            x = like(x)
            assert_same(step(local, x), step(twin, x))
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=i % 2 == 0)
    assert_same(dict(net.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("graphs", ["whole", "parts"])
@pytest.mark.parametrize("streams", [True, False])
def test_stacked_segments_are_captured_too(graphs: Any, streams: bool, device: str) -> None:
    windows = {"n": 2, "windows": 2, "cuts": "cost"} if streams else {"cuts": "paper"}
    net, x = convert("vectors", coarse="linear", device=device, **windows)
    twin = copy.deepcopy(net)
    with machine(device):
        local = capture_graphs(net, x, graphs=graphs, stack=True, streams=streams)
        assert local.stacks
        for _ in range(2):
            assert_same(step(local, x), step(twin, x))


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("graphs", ["whole", "parts"])
def test_what_does_not_fit_runs_eagerly(graphs: Any, device: str) -> None:
    net, x = convert(device=device)
    twin = copy.deepcopy(net)
    with machine(device) as double:
        local = capture_graphs(net, x, graphs=graphs)
        replays = _replays(double)
        for other in (x[:3], torch.cat([x, x]), x.new_zeros(4, 3, 10, 10)):
            assert_same(step(local, other), step(twin, other))
        asking = x.clone().requires_grad_()
        local(asking).sum().backward()
        assert asking.grad is not None, "the captured example asked for no gradient"
        local.zero_grad()
        twin(asking.detach())
        for network in (net, twin):
            network.layer1[0].bn1.eval()  # a part of it frozen since
        assert_same(step(local, x), step(twin, x))
        local.eval(), twin.eval()
        assert_same(local(x), twin(x))
        assert _replays(double) == replays
        local.train()
        step(local, x)
        assert double is None or _replays(double) > replays


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("graphs", ["whole", "parts"])
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_of_the_input_are_the_callers_to_keep(n: int, graphs: Any, device: str) -> None:
    net, x = convert("vectors", n=n, device=device)
    twin = copy.deepcopy(net)
    with machine(device) as double:
        local = capture_graphs(net, {"input": x.requires_grad_()}, graphs=graphs)
        replays, kept = _replays(double), []
        for network in (local, twin, local, twin):
            x = torch.full_like(x, 1.0 + len(kept) // 2).requires_grad_()
            network(x).square().sum().backward()
            kept.append(x)
        assert double is None or _replays(double) > replays
        for a, b in zip(kept[::2], kept[1::2], strict=True):
            assert_same(a.grad, b.grad)


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("graphs", ["whole", "parts"])
def test_each_mode_and_size_has_its_own_capture(graphs: Any, device: str) -> None:
    net, x = convert(device=device)
    net.layer2.eval()  # a mixture of modes is kept
    twin = copy.deepcopy(net)
    with machine(device) as double:
        local = capture_graphs(net, x, graphs=graphs)
        local.capture(x[:3], graphs=graphs)
        local.capture(x, graphs=graphs, training=False)
        assert net.training
        assert not net.layer2[0].bn1.training
        assert_same(step(local, x), step(twin, x))
        assert_same(step(local, x[:3]), step(twin, x[:3]))
        local.eval(), twin.eval()
        replays = _replays(double)
        with torch.no_grad():
            first = local(x)
            kept = first.clone()
            local(like(x))
        assert torch.equal(first, kept), "outputs are copies"
        assert_same(first, twin(x).detach())
        assert double is None or _replays(double) > replays
        assert local(x).requires_grad, "eval mode was captured without a backward"


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("how", ["to", "net", "assign", "replaced", "frozen"])
def test_parameters_that_are_elsewhere_are_noticed(how: str, device: str) -> None:
    net, x = convert("vectors", device=device)
    with machine(device):
        local = capture_graphs(net, x)
        net.load_state_dict(copy.deepcopy(net.state_dict()))  # in place: they are where they were
        local(x)
        match how:
            case "to":
                local.double().float()
            case "net":
                net.double().float()
            case "assign":
                net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
            case "replaced":
                net.get_submodule("0").bias = nn.Parameter(torch.zeros(8, device=device))
            case "frozen":
                next(net.parameters()).requires_grad_(False)
        with pytest.raises(ModelError, match="moved, replaced or frozen"):
            local(x)
        local.capture(x)
        assert_same(local(x), net(x))
        assert local.release() is net
        assert_same(local(x), net(x))


@pytest.mark.parametrize("device", MACHINES)
def test_hooks_on_parameters_run_once(device: str) -> None:
    net, x = convert("vectors", device=device)
    twin = copy.deepcopy(net)
    for network in (net, twin):
        next(network.parameters()).register_hook(lambda gradient: 3 * gradient)
    with machine(device):
        alive = net(x)  # autograd's graph of an eager step, with its parameters' last steps on the caller's stream
        local = capture_graphs(net, x)
        assert_same(step(local, x), step(twin, x))
        del alive


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_autocast_on_a_gpu() -> None:
    net, x = convert("vectors", device="cuda")
    local = capture_graphs(net, x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert_same(local(x), net(x))
        local.capture(x)
        assert torch.is_autocast_cache_enabled()
        assert local(x).dtype == net(x).dtype == torch.bfloat16
        assert_same(local(x), net(x))
    assert local(x).dtype == torch.float32


def test_autocast_is_part_of_what_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = convert("vectors")
    with cuda_on_the_cpu() as double:
        local = capture_graphs(net, x)
        monkeypatch.setattr("torch.is_autocast_enabled", lambda device: device == "cuda")
        local(x)
        assert not _replays(double)
        monkeypatch.undo()
        local(x)
        assert _replays(double)


def test_dropout_draws_anew_in_every_replay() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(3)), nn.Linear(8, 2))
    net = pararealize(model, n=2, example_inputs=torch.randn(4, 8), coarse="linear")
    with cuda_on_the_cpu():
        local = capture_graphs(net, x := torch.randn(4, 8))
        first, second = local(x), local(x)
    assert not torch.equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dropout_on_a_gpu_follows_the_seed() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(3)), nn.Linear(8, 2))
    net = pararealize(model, n=2, example_inputs=torch.randn(4, 8), coarse="linear").cuda()
    x = torch.randn(4, 8, device="cuda")
    state = torch.cuda.get_rng_state()
    local = capture_graphs(net, x)
    assert torch.equal(state, torch.cuda.get_rng_state())
    torch.manual_seed(3)
    first, second = local(x), local(x)
    torch.manual_seed(3)
    again = local(x)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("graphs", [None, "parts"])
def test_several_gpus(graphs: Any) -> None:
    net, x = convert(devices=["cuda:0", "cuda:1"])
    twin = copy.deepcopy(net)
    local = run_local(net)
    assert_same(step(local, x), step(twin, x))
    local.capture(x, graphs=graphs)
    for _ in range(3):
        assert_same(step(local, x := like(x)), step(twin, x))
    with pytest.raises(DeviceError, match="needs one GPU"):
        local.capture(x, graphs="whole")


# Bad input ----------------------------------------------------------------------------------------------------------


def test_what_is_no_network_to_run() -> None:
    net, _ = convert("vectors")
    with pytest.raises(ModelError, match="Perceptron is not a parareal network"):
        run_local(Perceptron())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="run locally already"):
        run_local(run_local(net))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="meta device"):
        run_local(net.to("meta"))


def test_options_that_there_are_not() -> None:
    net, x = convert("vectors")
    with pytest.raises(PlanError, match="stack is 'always'"):
        run_local(net, stack="always")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"no two segments .* can be stacked: g1: .*stack=False"):
        run_local(convert("convolutions", n=2, cuts=["layer2.0"])[0], stack=True)
    with pytest.raises(ExampleError, match="no example inputs"):
        run_local(convert("vectors", cuts="paper")[0], stack="auto")
    with cuda_on_the_cpu(), pytest.raises(PlanError, match="graphs is 'all'"):
        run_local(net).capture(x, graphs="all")  # type: ignore[arg-type]


def test_captures_need_a_gpu() -> None:
    net, x = convert("vectors")
    with pytest.raises(DeviceError, match=r"need a network on GPUs, and this one is on cpu"):
        capture_graphs(net, x)


def test_examples_that_do_not_fit() -> None:
    net, _ = convert("vectors")
    with cuda_on_the_cpu() as double:
        for example, error, message in (
            (torch.randn(4, 8, device="meta"), DeviceError, "example is on meta and the network on cpu"),
            ((torch.randn(4, 8), 3, 4), ExampleError, "does not take this call: too many"),
            (torch.randn(4, 9), ExampleError, "does not accept the example inputs"),
            (None, ExampleError, "no example inputs"),
        ):
            with pytest.raises(error, match=message):
                capture_graphs(net, example)
        assert not double.graphs, "nothing was captured before"


def test_what_fails_in_a_capture_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = convert("vectors")
    with cuda_on_the_cpu():

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr("torch.cuda.graph", fail)
        local = run_local(net)
        with pytest.raises(CaptureError, match="cannot be captured as CUDA graphs: operation not permitted"):
            local.capture(x)
        assert_same(local(x), net(x))
        assert isinstance(local, LocalModule)
        assert all(isinstance(p, nn.Parameter) and p is q for p, q in zip(local.parameters(), net.parameters()))


def _replays(double: Any) -> int:
    return 0 if double is None else sum(graph.replays for graph in double.graphs)
