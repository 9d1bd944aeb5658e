"""Restacked networks against independently written ones: outputs, statistics, gradients, order, memory, refusals."""

import copy
import json
import math
import pickle
import warnings
from fractions import Fraction
from importlib import resources

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from models import MaskedTransformer, RandomGraph, SmallResNet, UNet, random_graphs
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pararealize import models, pararealize, recalibrate_batchnorm, restack
from pararealize.errors import ModelError, PararealizeError, RestackError, RestackWarning, TableauError
from pararealize.models import PreActBasic, PreActResNet
from pararealize.tableaux import Tableau, stacked_euler, tableau, verner

F64 = torch.float64


def images(side: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side)


def tiny_vit(layers: int = 4, dropout: float = 0.0) -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, layers, 2, 32, 64, dropout=dropout)


def run(model: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Output, gradients and state after one pass of a copy."""
    net = copy.deepcopy(model).train(training)
    torch.manual_seed(3)
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return y.detach(), grads, net.state_dict()


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, *, exact: bool, modes=(True, False)) -> None:
    for training in modes:
        (y, grads, state), (y2, grads2, state2) = run(ours, x, training), run(theirs, x, training)
        close = torch.equal if exact else lambda a, b: torch.allclose(a, b, rtol=1e-9, atol=1e-11)
        assert close(y, y2)
        assert list(grads) == list(grads2)
        assert all(close(grads[name], grads2[name]) for name in grads)
        assert list(state) == list(state2)
        assert all(close(state[name], state2[name]) for name in state)


# ------------------------------------------------------------------------------------------------------ bit for bit


class InPlace(nn.Module):
    """Pre-activation blocks whose first operation works in place on what enters, and sums that do so too."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2 * depth))
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = self.relu(x)
            y = self.drop(second(self.relu(first(x))))
            y += x
            x = y
        return x


BITWISE = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "resnet50": lambda: torchvision.models.resnet50(),
    "resnext50": lambda: torchvision.models.resnext50_32x4d(),
    "convnext_tiny": lambda: torchvision.models.convnext_tiny(),
    "vit": lambda: tiny_vit(dropout=0.2),
    "resnet20": models.resnet20,
    "resnet164": models.resnet164,
    "small": SmallResNet,
    "in place": InPlace,
}


@pytest.mark.parametrize("name", BITWISE)
def test_euler_is_the_network_itself(name: str) -> None:
    """Outputs, gradients, statistics and names, bit for bit, in train and in eval mode, random numbers included."""
    model = BITWISE[name]()
    before = copy.deepcopy(model.state_dict())
    x = images(32)
    net = restack(model, "euler", example_inputs=x)
    assert len(net.restacking.groups) >= 3
    assert_same(net, model, x, exact=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_euler_with_masks() -> None:
    ids = torch.randint(0, 11, (2, 7))
    model = MaskedTransformer()
    assert_same(restack(model, "euler", example_inputs=ids), model, ids, exact=True)


@settings(max_examples=40)
@given(random_graphs())
def test_euler_of_random_networks_or_a_refusal(case: tuple[RandomGraph, Tensor]) -> None:
    model, x = case
    try:
        net = restack(model, "euler", example_inputs=x)
    except PararealizeError:
        return
    for training in (True, False):
        with torch.no_grad():
            torch.manual_seed(1)
            expected = copy.deepcopy(model).train(training)(x)
            torch.manual_seed(1)
            assert torch.equal(copy.deepcopy(net).train(training)(x), expected)


def test_stacked_euler_is_a_preactivation_network_itself() -> None:
    """Euler steps in one table: other groups, the same sums in the same order; gradients are summed in another."""
    model, x = PreActResNet(PreActBasic, 4).double(), images().double()
    net = restack(model, stacked_euler(3), example_inputs=x)
    for training in (True, False):
        assert torch.equal(run(net, x, training)[0], run(model, x, training)[0])
    assert_same(net, model, x, exact=False)


# ------------------------------------------------------------------------------- against independently written blocks


class Branch(nn.Module):
    """The paper's f: conv(relu(norm(conv(relu(norm(z))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv2(self.relu(self.norm2(self.conv1(self.relu(self.norm1(z))))))


class Step(nn.Module):
    """One residual block of the network that is restacked."""

    def __init__(self, width: int, post: bool) -> None:
        super().__init__()
        self.f, self.post = Branch(width), nn.ReLU(inplace=True) if post else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.f(x)
        out += x
        return self.post(out)


class Stack(nn.Module):
    def __init__(self, depth: int, post: bool = True, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Step(width, post) for _ in range(depth)))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ByHand(Stack):
    """The same modules, their steps written out scheme by scheme."""

    def __init__(self, depth: int, post: bool, scheme: str, h: float = 1.0) -> None:
        super().__init__(depth, post)
        self.scheme, self.h = scheme, h

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        blocks = list(self.blocks)
        s = {"euler": 1, "midpoint": 2, "rk4": 4, "rk4-last": 4, "rk8": 14}[self.scheme]
        for g in range(len(blocks) // s):
            group = blocks[g * s : (g + 1) * s]
            y = getattr(self, self.scheme.replace("-", "_"))(x, *(block.f for block in group))
            x = torch.relu(y) if isinstance(group[0].post, nn.ReLU) else y
        for block in blocks[len(blocks) // s * s :]:
            x = block(x)
        return self.head(x.mean((2, 3)))

    def euler(self, x, f):
        return x + self.h * f(x)

    def midpoint(self, x, f1, f2):
        return x + self.h * f2(x + self.h / 2 * f1(x))

    def rk4(self, x, f1, f2, f3, f4):
        h = self.h
        k1 = f1(x)
        k2 = f2(x + h / 2 * k1)
        k3 = f3(x + h / 2 * k2)
        k4 = f4(x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def rk4_last(self, x, f1, f2, f3, f4):
        h = self.h
        return x + h * f4(x + h * f3(x + h / 2 * f2(x + h / 2 * f1(x))))

    def rk8(self, x, *fs):
        table = json.loads(resources.files("pararealize").joinpath("verner_rk89.json").read_text())
        number = lambda p, q, d: (p + q * math.sqrt(6)) / d  # noqa: E731
        k: list[Tensor] = []
        for i, f in enumerate(fs, start=1):
            row = table["a"].get(str(i), {})
            k.append(f(x + sum(self.h * number(*entry) * k[int(j) - 1] for j, entry in row.items())))
        return x + sum(self.h * number(*entry) * k[int(j) - 1] for j, entry in table["b8"].items())


@pytest.mark.parametrize("post", [True, False], ids=["post", "pre"])
@pytest.mark.parametrize(
    "scheme, depth, h",
    [
        ("euler", 3, 0.25),
        ("midpoint", 5, 1.0),
        ("rk4", 9, 1.0),
        ("rk4", 8, 4.0),
        ("rk4-last", 4, 1.0),
        ("rk8", 16, 1.0),
    ],
)
def test_against_blocks_written_by_hand(scheme: str, depth: int, h: float, post: bool) -> None:
    model = Stack(depth, post).double()
    theirs = ByHand(depth, post, scheme, h).double()
    theirs.load_state_dict(model.state_dict())
    x = images(6, 3).double()
    with warnings.catch_warnings(action="error"):
        net = restack(model, scheme, h, example_inputs=x)
    for training in (True, False):
        (y, grads, state), (y2, grads2, state2) = run(net, x, training), run(theirs, x, training)
        torch.testing.assert_close(y, y2, rtol=1e-8, atol=1e-9)
        size = max(grad.abs().max() for grad in grads2.values())
        for name, grad in grads2.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-6, atol=float(1e-8 * size), msg=name)
        for name, value in state2.items():
            torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10, msg=name)
        counts = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
        assert counts == {int(training)}  # once a forward pass, and not twice


def test_by_layer_of_a_transformer() -> None:
    """f(x) = attn(x) + mlp(x + attn(x)) of a whole layer, by hand, as midpoint."""
    model = tiny_vit(4).double().eval()
    x = images(32).double()
    net = restack(model, "midpoint", example_inputs=x, per="block")
    assert [group.blocks for group in net.restacking.groups] == [
        tuple(f"encoder.layers.encoder_layer_{i + k}" for k in range(2)) for i in (0, 2)
    ]

    def step(u: Tensor, pair) -> Tensor:
        f = [lambda z, layer=layer: layer(z) - z for layer in pair]
        return u + f[1](u + f[0](u) / 2)

    u = model._process_input(x)
    u = torch.cat([model.class_token.expand(2, -1, -1), u], 1) + model.encoder.pos_embedding
    layers = list(model.encoder.layers)
    for pair in (layers[:2], layers[2:]):
        u = step(u, pair)
    torch.testing.assert_close(net(x), model.heads(model.encoder.ln(u)[:, 0]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scheme", ["midpoint", "rk4", "rk4-last"])
@pytest.mark.parametrize("adaptive", [False, "all", "output"])
def test_gradcheck(scheme: str, adaptive) -> None:
    """Gradients of input, weights and learnable steps against differences."""
    model = nn.Sequential(nn.Linear(3, 3), *(Tanh(3) for _ in range(4)))
    model.double()
    net = restack(model, scheme, adaptive=adaptive, example_inputs=torch.randn(2, 3, dtype=F64))
    names, values = zip(*((n, p.detach().requires_grad_()) for n, p in net.named_parameters()), strict=True)
    assert any(name.startswith("steps.") for name in names) == bool(adaptive)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    call = lambda x, *ps: torch.func.functional_call(net, dict(zip(names, ps, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, *values))


class Tanh(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


# ------------------------------------------------------------------------------------------------------------- order


class Pendulum(nn.Module):
    """x + f(x) with f the right-hand side of a pendulum; its one parameter makes it a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        position, speed = x.unbind(-1)
        return x + torch.stack([speed, -self.gravity * torch.sin(position)], -1)


@pytest.mark.parametrize(
    "scheme, order",
    [("euler", 1), ("midpoint", 2), ("rk4", 4), ("rk8", 8), (verner(9), 9)],
    ids=["euler", "midpoint", "rk4", "rk8", "rk9"],
)
def test_order_of_convergence(scheme: str | Tableau, order: int) -> None:
    """With all f's equal and h = T/n, n steps of the restacked network follow the pendulum with the scheme's order."""
    T, start = 4.0, torch.tensor([[1.0, 0.5]], dtype=F64)
    stages = {1: 1, 2: 2, 4: 4, 8: 14, 9: 16}[order]
    errors = []
    steps = {1: (64, 128), 2: (32, 64), 4: (16, 32), 8: (4, 8), 9: (3, 6)}[order]
    for n in steps:
        model = nn.Sequential(*(Pendulum() for _ in range(n * stages)))
        net = restack(model, scheme, h=T / n, example_inputs=start.repeat(2, 1), strict=False) if order < 8 else None
        if net is None:
            with pytest.warns(RestackWarning, match="no normalisation"):
                net = restack(model, scheme, h=T / n, example_inputs=start.repeat(2, 1), strict=False)
        assert len(net.restacking.groups) == n
        with torch.no_grad():
            errors.append((net(start) - exact_pendulum(T)).abs().max().item())
    slope = math.log(errors[0] / errors[1]) / math.log(steps[1] / steps[0])
    assert slope == pytest.approx(order, abs=0.5), errors


def exact_pendulum(T: float) -> Tensor:
    """The Taylor method of order 30 in small steps, which is exact to rounding and no Runge-Kutta method."""
    y, v = 1.0, 0.5
    steps, terms = 64, 30
    h = T / steps
    for _ in range(steps):
        p, q, s, c = [y], [v], [math.sin(y)], [math.cos(y)]
        for k in range(terms):
            p.append(q[k] / (k + 1))
            q.append(-s[k] / (k + 1))
            s.append(sum((i + 1) * p[i + 1] * c[k - i] for i in range(k + 1)) / (k + 1))
            c.append(-sum((i + 1) * p[i + 1] * s[k - i] for i in range(k + 1)) / (k + 1))
        y, v = (sum(t * h**k for k, t in enumerate(series)) for series in (p, q))
    return torch.tensor([[y, v]], dtype=F64)


# ------------------------------------------------------------------------------------------------------------ memory


class Maps(TorchDispatchMode):
    """Follows the memory of every tensor of so many elements that is made."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.made = elements, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == self.elements:
            self.made.append(StorageWeakRef(result.untyped_storage()))
        return result

    def alive(self) -> int:
        return len({ref.cdata for ref in self.made if not ref.expired()})


@pytest.mark.parametrize("scheme, maps", [("euler", 1), ("midpoint", 2), ("rk4", 3), ("rk4-last", 2), ("rk8", 11)])
def test_maps_are_let_go_after_their_last_use(scheme: str, maps: int) -> None:
    """What is alive whenever an f is called: x, its input, the sum so far, and the k's that are still to be read."""
    model = Bare(28, norm=True)
    net = restack(model, scheme, example_inputs=torch.randn(2, 4))
    counts: list[int] = []
    x = torch.randn(7, 4)
    with torch.no_grad(), Maps(7 * 4) as mode:
        for name, module in net.named_modules():
            if isinstance(module, nn.LayerNorm):
                assert name.endswith("0")
                module.register_forward_pre_hook(lambda *_: counts.append(mode.alive()))
        net(x)
    assert len(counts) == 28
    assert max(counts) == maps == tableau(scheme).maps


# ------------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("scheme, adaptive", [("midpoint", False), ("rk4", True)])
def test_restacked_networks_are_converted(scheme: str, adaptive: bool) -> None:
    """n = 1 gives the restacked network back, and n = 4 takes a training step, learnable steps included."""
    restacked = restack(PreActResNet(PreActBasic, 5), scheme, adaptive=adaptive)
    x, labels = images(batch=4), torch.randint(0, 10, (4,))
    one = pararealize(restacked, 1)
    assert_same(one, restacked, x, exact=True)
    net = pararealize(restacked, 4)
    assert len(net.segments) == 4
    assert set(restacked.state_dict()) == set(net.original_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_resnet1001_runs_and_every_parameter_has_a_gradient() -> None:
    net = restack(models.resnet1001(), "rk8")
    assert len(net.restacking.groups) == 21
    x = images(8)
    net(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert net(images(16, 3)).shape == (3, 10)


def test_it_is_an_ordinary_module() -> None:
    model = PreActResNet(PreActBasic, 3).eval()
    net = restack(model, "midpoint", adaptive=True)
    assert not net.training
    assert [key for key in net.state_dict() if not key.startswith("steps.")] == list(model.state_dict())
    x = images()
    copied = copy.deepcopy(net)
    assert torch.equal(copied(x), net(x))
    with torch.no_grad():
        copied.steps.h1.fill_(0.5)
        assert not torch.equal(copied(x), net(x))
        net.load_state_dict(copied.state_dict())
        assert torch.equal(copied(x), net(x))
    with pytest.raises(ModelError, match="saved by its parameters"):
        pickle.dumps(net)


def test_on_the_meta_device_and_in_double_precision() -> None:
    meta = restack(Stack(4).to("meta"), "rk4", adaptive=True, example_inputs=torch.empty(2, 3, 6, 6, device="meta"))
    assert all(p.is_meta for p in meta.parameters())
    double = restack(Stack(4).double(), "rk4", adaptive=True, example_inputs=images(6).double())
    assert double.steps.h1.dtype == F64


def test_export_compile_and_autocast() -> None:
    net, x = restack(models.resnet20(), "midpoint", adaptive=True).eval(), images()
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(net, backend="eager")(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(net(x).float(), expected, rtol=0.1, atol=0.1)


def test_printed_code_reads_as_the_scheme() -> None:
    code = restack(Stack(4), "rk4").code
    for line in (
        "z1_2 = torch.add(stem, k1_1, alpha = 0.5)",
        "z1_3 = torch.add(stem, k1_2, alpha = 0.5)",
        "z1_4 = stem + k1_3",
        "y1 = torch.add(",
    ):
        assert line in code


@pytest.mark.parametrize("adaptive", ["all", "output"])
def test_what_a_learnable_step_scales(adaptive) -> None:
    """With h = 1/2: all of a midpoint step is that of h = 1/2, or its stages stay those of the h it began with."""
    model, x = Stack(2).double().eval(), images(6).double()
    net = restack(model, "midpoint", adaptive=adaptive, example_inputs=x)
    with torch.no_grad():
        net.steps.h1.fill_(0.5)
        if adaptive == "all":
            expected = restack(model, "midpoint", h=0.5, example_inputs=x)(x)
        else:
            u, (one, two) = model.stem(x), model.blocks
            u = torch.relu(u + 0.5 * two.f(u + 0.5 * one.f(u)))
            assert torch.allclose(net(x), model.head(u.mean((2, 3))))
            net.steps.h1.fill_(0.25)
            u = model.stem(x)
            u = torch.relu(u + 0.25 * two.f(u + 0.5 * one.f(u)))
            expected = model.head(u.mean((2, 3)))
    torch.testing.assert_close(net(x), expected)


def test_parameter_groups() -> None:
    net = restack(Stack(4), "rk4", adaptive=True)
    groups = net.parameter_groups(weight_decay=0.1, lr=0.5)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [group["lr"] for group in groups] == [0.5, 0.5]
    assert groups[1]["params"] == [net.steps.h1]
    assert len(groups[0]["params"]) + 1 == len(list(net.parameters()))
    (group,) = restack(Stack(4), "rk4").parameter_groups(weight_decay=0.1)
    assert group["weight_decay"] == 0.1


def test_a_trained_network() -> None:
    """A warning says that the function changes; recalibration brings the statistics back to the activations."""
    model, x = Stack(4), images(8, 16)
    model(x)
    with pytest.warns(RestackWarning, match=r"another function than it was: recalibrate_batchnorm.*h=4 keeps"):
        net = restack(model, "rk4")
    with warnings.catch_warnings(action="error"):
        restack(model, "euler")
    recalibrate_batchnorm(net, [x])
    seen: list[Tensor] = []
    norm = net.blocks[3].f.norm1
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    measured = norm.running_mean.clone()
    net.train()(x)
    torch.testing.assert_close(measured, seen[0].mean((0, 2, 3)))


def test_modes_after_restacking_are_followed() -> None:
    model, x = tiny_vit(2, dropout=0.5), images()
    nn.init.normal_(model.heads.head.weight)  # torchvision's are zero
    net = restack(model, "midpoint", example_inputs=x)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# ---------------------------------------------------------------------------------------------------------- refusals


class Bare(nn.Module):
    """Residual blocks without any norm."""

    def __init__(self, depth: int = 14, drop: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4) if norm else nn.Tanh(), nn.Linear(4, 4), nn.Dropout(drop))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize(
    "model, arguments, error, message",
    [
        (Stack(4), {"scheme": "rk5"}, TableauError, "no scheme 'rk5'; did you mean 'rk"),
        (Stack(4), {"h": 0.0}, RestackError, r"h is 0\.0; .* pass a positive number"),
        (Stack(4), {"h": math.nan}, RestackError, "h is nan"),
        (Stack(4), {"adaptive": "stages", "per": "layer"}, RestackError, "adaptive is 'stages'.*; and per is 'layer'"),
        (Stack(3), {}, RestackError, "no chain of 4 residual blocks .* its longest has 3: .* such as midpoint"),
        (UNet(), {}, RestackError, "has no residual blocks"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {}, RestackError, "no addition of two activations at all"),
        (Bare(), {"scheme": "rk8"}, RestackError, "2307 times .* no normalisation at the head .*scheme='rk4'"),
        (Bare(14, 0.1, True), {"scheme": "rk8"}, RestackError, "dropout, whose noise grows alike"),
    ],
)
def test_refusals(model: nn.Module, arguments: dict, error: type[Exception], message: str) -> None:
    x = torch.randn(2, 4) if isinstance(model, Bare | nn.Sequential) else images(8)
    with pytest.raises(error, match=message):
        restack(model, example_inputs=x, **arguments)


def test_what_is_refused_is_to_be_had_all_the_same() -> None:
    with pytest.warns(RestackWarning, match="no normalisation .* training may diverge"):
        net = restack(Bare(), "rk8", example_inputs=torch.randn(2, 4), strict=False)
    assert net(torch.randn(3, 4)).shape == (3, 4)
    with warnings.catch_warnings(action="error"):  # dropout that is switched off, and a norm
        restack(Bare(14, 0.0, True), "rk8", example_inputs=torch.randn(2, 4))
        restack(Bare(14, 0.5), "rk4", example_inputs=torch.randn(2, 4))


def test_names_that_steps_need() -> None:
    model = Stack(4)
    model.steps = nn.Linear(1, 1)
    assert "steps.weight" in restack(model, "rk4").state_dict()
    with pytest.raises(ModelError, match=r"top-level names \['steps'\]"):
        restack(model, "rk4", adaptive=True)


class Outer(nn.Module):
    """x + f(x), where f is a chain of residual blocks itself."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*(Tanh(4) for _ in range(inner)))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


@pytest.mark.parametrize(
    "inner, scheme, rewired, reason",
    [
        (
            3,
            "midpoint",
            [("1.inner.0", "1.inner.1"), ("2.inner.0", "2.inner.1")],
            "it contains blocks that are rewired",
        ),
        (2, "midpoint", [("1", "2")], "it lies within the f of 1"),
        (1, "euler", [("1",), ("2",)], "it lies within the f of 2"),
    ],
)
def test_blocks_within_blocks(inner: int, scheme: str, rewired: list, reason: str) -> None:
    """Those in the longer chain are rewired, the outer ones where both are as long."""
    model, x = nn.Sequential(nn.Linear(4, 4), Outer(inner), Outer(inner)), torch.randn(3, 4)
    net = restack(model, scheme, example_inputs=x)
    assert [group.blocks for group in net.restacking.groups] == rewired
    assert reason in {other.reason for other in net.restacking.left}
    if scheme == "euler":
        assert torch.equal(net(x), model(x))


def test_a_users_table() -> None:
    """Heun's method, by hand."""
    heun = Tableau(name="heun", a=[[], [1]], b=[Fraction(1, 2)] * 2, order=2)
    model, x = Stack(2, post=False).double().eval(), images(6).double()
    u, (one, two) = model.stem(x), model.blocks
    k1 = one.f(u)
    u = u + (k1 + two.f(u + k1)) / 2
    torch.testing.assert_close(restack(model, heun, example_inputs=x)(x), model.head(u.mean((2, 3))))
    assert np.isclose(float(heun.b[0]), 0.5)


def test_random_numbers_and_shared_statistics_keep_their_order() -> None:
    """Dropout and a norm beside f run between f's own and the sum: their turns stay as they were."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.drop, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            f = self.norm(self.drop(self.b(x)))
            beside = self.drop(self.norm(x))
            return (x + f) * beside

    model, x = Beside(), torch.randn(6, 4)
    assert_same(restack(model, "euler", example_inputs=x), model, x, exact=True)
