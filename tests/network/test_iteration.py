"""The original by iterations: to the bit, statistics and masks included; iteration 0 is the parareal network."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize import PararealizeError, pararealize
from pararealize.errors import ExampleError, PlanError
from pararealize.network.parareal import compose, iterate
from tests.models import (
    InPlace,
    LanguageModel,
    MaskedTransformer,
    Perceptron,
    RandomGraph,
    SharedBias,
    SkipInPlace,
    SmallResNet,
    StochasticDepth,
    random_graphs,
)

IMAGES = torch.randn(4, 3, 8, 8)
IDS = torch.randint(0, 11, (4, 5))
NETWORKS = {
    "convolutions": (SmallResNet, IMAGES),
    "masks": (MaskedTransformer, IDS),
    "shared values": (SharedBias, torch.randn(4, 6)),
    "in place": (InPlace, torch.randn(4, 6)),
    "a skip in place": (SkipInPlace, torch.randn(4, 6)),
    "vectors": (Perceptron, torch.randn(4, 8)),
    "dictionaries, tied": (LanguageModel, IDS),
    "shared layers": (lambda: LanguageModel(shared=True), IDS),
    "paths dropped": (lambda: nn.Sequential(*(StochasticDepth() for _ in range(6))), torch.randn(4, 6)),
}


def value(output: object) -> Tensor:
    return output["logits"] if isinstance(output, dict) else output  # type: ignore[return-value]


def seeded(function):
    torch.manual_seed(3)
    return value(function())


def step(model: nn.Module, function) -> tuple[Tensor, dict[str, Tensor]]:
    """A training step's output and the gradients that it left."""
    model.zero_grad()
    output = seeded(function)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("coarse", ["linear", "block", "exact"])
@pytest.mark.parametrize("name", NETWORKS)
def test_enough_iterations_are_the_original_and_none_the_parareal_network(name: str, coarse: str) -> None:
    make, x = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    net = pararealize(model, n=4, example_inputs=x, coarse=coarse)
    for rows in (x, x[:3]):
        exact = value(model(rows))
        assert torch.equal(value(net.iterate(rows, 0)), value(net(rows)))
        for k in (3, 4, 9):
            assert torch.equal(value(net.iterate(rows, k)), exact)
    result = net.iterate(x, 3, errors=True)
    assert torch.equal(value(result.output), value(model(x)))
    for k, row in enumerate(result.errors):
        assert not any(row[: k + 1])
    if name == "convolutions":
        assert all(all(row[k + 1 :]) for k, row in enumerate(result.errors))  # the others are not, so far


@pytest.mark.parametrize("name", ["in place", "a skip in place", "convolutions"])
@pytest.mark.parametrize("n", [1, 2])
def test_who_asks_for_errors_gets_the_same_output(name: str, n: int) -> None:
    make, x = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    net = pararealize(model, n=n, windows=3, example_inputs=x, coarse="linear")
    result = net.iterate(x, n - 1, errors=True)
    assert torch.equal(result.output, model(x))
    assert not any(result.errors[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_of_enough_iterations_is_the_originals(name: str) -> None:
    """Output and the buffers it leaves, with dropout's masks, to the bit; every gradient to rounding."""
    make, x = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().train().double(), x.double() if x.is_floating_point() else x
    net = pararealize(model, n=3, example_inputs=x, coarse="linear")
    for k in (2, 3):
        twin, other = copy.deepcopy(model), copy.deepcopy(net)
        expected, theirs = step(twin, lambda twin=twin: twin(x))
        output, ours = step(other, lambda other=other, k=k: other.iterate(x, k))
        assert torch.equal(output, expected)
        assert ours.keys() >= theirs.keys()
        for key, gradient in theirs.items():
            assert (ours[key] - gradient).norm() <= 1e-12 * (1 + gradient.norm()), key
        assert all(not gradient.any() for key, gradient in ours.items() if key not in theirs)
        state = other.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in twin.state_dict().items())


def test_iteration_0_in_train_mode_is_a_call() -> None:
    net = pararealize(MaskedTransformer(), n=3, example_inputs=IDS, coarse="block")
    assert torch.equal(seeded(lambda: net.iterate(IDS, 0)), seeded(lambda: net(IDS)))
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES, coarse="block")
    twin = copy.deepcopy(net)
    assert torch.equal(net.iterate(IMAGES, 0), twin(IMAGES))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("errors", [False, True])
def test_statistics_move_once(k: int, errors: bool) -> None:
    net = pararealize(SmallResNet(), n=4, example_inputs=IMAGES, coarse="block")
    net.iterate(IMAGES, k, errors=errors)
    counts = {key: int(tensor) for key, tensor in net.state_dict().items() if key.endswith("num_batches_tracked")}
    assert set(counts.values()) == {1}
    assert any(key.startswith("coarse") for key in counts)


def test_fewer_iterations_are_classic_parareal() -> None:
    """Against the loop on plain callables, in double precision, with gradients by finite differences."""
    torch.manual_seed(0)
    model = Perceptron().double()
    x = torch.randn(2, 8, dtype=torch.float64)
    net = pararealize(model, n=4, example_inputs=x, coarse="linear")
    g = list(net.segments.values())
    x_1 = net.stem(x)
    x_ = [adapter(x) for adapter in net.adapters.values()]
    F = [lambda r, j=j: net.coarse[f"F{j}"](r) if f"F{j}" in net.coarse else r for j in (1, 2, 3)]
    y_ = [segment(u) for segment, u in zip(g, [x_1, *x_], strict=True)]
    G = [g[0], *(lambda u, j=j: y_[j] + F[j - 1](u - x_[j - 1]) for j in (1, 2, 3))]
    serial = compose(x_1, g)
    result = net.iterate(x, 3, errors=True)
    for k in (1, 2):
        U = iterate(x_1, g, G, k)
        assert torch.allclose(net.iterate(x, k), net.head(U[-1]), rtol=1e-12)
        expected = [((a - b).norm() / b.norm()).item() for a, b in zip(U[1:], serial[1:], strict=True)]
        assert result.errors[k] == pytest.approx(expected, abs=1e-15)
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net.iterate(x, 1), (x,))


@settings(max_examples=25, deadline=None)
@given(random_graphs(), st.integers(1, 4))
def test_random_networks(case: tuple[RandomGraph, Tensor], n: int) -> None:
    model, x = case
    try:
        net = pararealize(model, n=n, example_inputs=x, coarse="linear")
    except PararealizeError:
        return
    for training in (False, True):
        twin, other = copy.deepcopy(model).train(training), copy.deepcopy(net).train(training)
        expected, theirs = step(twin, lambda twin=twin: twin(x))
        output, ours = step(other, lambda other=other: other.iterate(x, n))
        assert torch.equal(output, expected)
        assert all(torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-6) for key in theirs)
        state = other.state_dict()
        assert all(torch.allclose(state[key], tensor) for key, tensor in twin.state_dict().items())


def test_devices_are_gone_through() -> None:
    """Two devices that tell tensors apart, without arithmetic: what is on the wrong one raises."""
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES, coarse="linear", devices=["meta", "cpu"])
    for name in ("segments.g2", "adapters.C2"):
        net.get_submodule(name).register_forward_hook(lambda module, args, output: _on("cpu", args, output))
    net.segments["g3"].register_forward_hook(lambda module, args, output: _on("meta", args, output))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # meta values cannot go to the CPU
        net.iterate(IMAGES, 2)
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES, coarse="linear", devices=["cpu", "cpu", "meta"])
    assert net.iterate(IMAGES, 2).device.type == "meta"


def _on(device: str, args: tuple[Tensor, ...], output: Tensor) -> None:
    assert {tensor.device.type for tensor in (*args, output)} == {device}


@pytest.mark.parametrize("k", [-1, 1.5, True, "2"])
def test_what_is_no_number_of_iterations(k: object) -> None:
    net = pararealize(Perceptron(), n=3, example_inputs=torch.randn(4, 8), coarse="linear")
    with pytest.raises(PlanError, match=rf"k is {k!r}.*to 2, the original \(n = 3\)"):
        net.iterate(torch.randn(4, 8), k)  # type: ignore[arg-type]


def test_inputs_in_each_form() -> None:
    net = pararealize(Perceptron(), n=3, example_inputs=torch.randn(4, 8), coarse="linear").eval()
    x = torch.randn(4, 8)
    (name,) = [str(node.target) for node in net.graph.nodes if node.op == "placeholder"]
    assert torch.equal(net.iterate((x,), 1), net.iterate({name: x}, 1))
    with pytest.raises(ExampleError, match="is a str"):
        net.iterate("x", 1)
    with pytest.raises(ExampleError, match="too many positional"):
        net.iterate((x, x), 1)


def test_the_table() -> None:
    net = pararealize(Perceptron(), n=3, example_inputs=torch.randn(4, 8), coarse="linear")
    lines = str(net.iterate(torch.randn(4, 8), 3, errors=True)).splitlines()
    assert lines[0] == "Perceptron: relative errors of the interfaces after k iterations, n = 3"
    assert lines[2].split() == ["k", "U_1", "U_2", "U_3"]
    assert [line.split().count("exact") for line in lines[3:]] == [1, 2, 3, 3]


class Counting(nn.Module):
    """A layer that counts its calls in Python, and reads the count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.count, self.seen = nn.Linear(8, 8), 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(1)
        return x + torch.tanh(self.linear(x)) * self.count / len(self.seen)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_state_in_python_moves_once(k: int) -> None:
    """A segment that is called anew in each iteration counted each of them, and gave another output each time."""
    model, x = nn.Sequential(*(Counting() for _ in range(3))), torch.randn(4, 8)
    net = pararealize(model, n=3, example_inputs=x, coarse="linear", leaf_modules=[Counting])
    for calls in (1, 2):
        output = net.iterate(x, k)
        expected = model(x)
        assert k < 2 or torch.equal(output, expected)
        modules = [module for module in net.modules() if isinstance(module, Counting)]
        assert [(module.count, len(module.seen)) for module in modules] == [(calls, 1 + calls)] * 3


class Remembering(nn.Module):
    """A layer that reads what it kept of its last call, and keeps this one's: in an attribute, in place, or a list."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(8, 8), where
        self.last: Tensor | None = torch.zeros(4, 8) if where == "in place" else None
        self.kept: list[Tensor] = [torch.zeros(4, 8)]
        self.register_buffer("memory", torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x))
        before = {"buffer": self.memory, "list": self.kept[0]}.get(self.where, self.last)
        y = x + h if before is None else x + h + before.clone()
        if self.where == "attribute":
            self.last = h.detach()
        else:
            before.copy_(h.detach())
        return y


@pytest.mark.parametrize("coarse", ["exact", "linear"])
@pytest.mark.parametrize("where", ["attribute", "in place", "list", "buffer"])
def test_a_memory_that_is_read_is_the_same_in_every_call_of_a_step(where: str, coarse: str) -> None:
    """F^j that is g^{j+1} itself was called once more after the call that moved the memory, and read the moved one."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Remembering(where) for _ in range(4))).eval(), torch.randn(4, 8)
    net = pararealize(model, n=4, example_inputs=x, coarse=coarse, leaf_modules=[Remembering])
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(net.iterate(x, 3), model(x), atol=1e-5)
