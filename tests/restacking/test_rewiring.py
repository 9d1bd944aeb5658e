"""Rewired blocks against blocks written by hand: outputs, gradients, order of convergence, memory, random numbers."""

import json
import math
import warnings
from importlib import resources

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pararealize import restack
from pararealize.errors import RestackWarning
from pararealize.restacking.tableaux import Tableau, tableau, verner
from tests.residuals import Bare, Stack, Tanh, assert_same, images, run, tiny_vit

F64 = torch.float64


# ------------------------------------------------------------------------------- against independently written blocks


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
        table = json.loads(resources.files("pararealize.restacking").joinpath("verner_rk89.json").read_text())
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
