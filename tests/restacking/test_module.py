"""Restacked networks: bit for bit the network itself, together with other tools, and what is refused."""

import copy
import json
import math
import pickle
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn

from pararealize import models, pararealize, recalibrate_batchnorm, restack
from pararealize.errors import ModelError, PararealizeError, RestackError, RestackWarning, TableauError
from pararealize.models import PreActBasic, PreActResNet
from pararealize.restacking.tableaux import Tableau, stacked_euler
from tests.models import MaskedTransformer, RandomGraph, SmallResNet, UNet, random_graphs
from tests.residuals import Bare, Stack, Tanh, assert_same, images, run, tiny_vit

F64 = torch.float64


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
    "convnext_tiny": lambda: torchvision.models.convnext_tiny(),
    "vit": lambda: tiny_vit(dropout=0.2),
    "resnet20": models.resnet20,
    "resnet56": models.resnet56,
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


@settings(max_examples=12)
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


# ------------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("scheme, adaptive", [("midpoint", False), ("rk4", True)])
def test_restacked_networks_are_converted(scheme: str, adaptive: bool) -> None:
    """n = 1 gives the restacked network back, and n = 4 takes a training step, learnable steps included."""
    restacked = restack(PreActResNet(PreActBasic, 5), scheme, adaptive=adaptive)
    x, labels = images(batch=4), torch.randint(0, 10, (4,))
    one = pararealize(restacked, 1, example_inputs=x)
    assert_same(one, restacked, x, exact=True)
    net = pararealize(restacked, 4, example_inputs=x)
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
    x = images(6)
    net = restack(Stack(4), "midpoint", adaptive=True, example_inputs=x).eval()
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


# ---------------------------------------------------------------------------------------------------- what was done


def test_what_is_left_is_listed() -> None:
    net = restack(PreActResNet(PreActBasic, 5), "rk4")
    left = {other.name: other.reason for other in net.restacking.left}
    assert left["stage1.4"] == "the rest of a chain of 5, fewer than the 4 stages of rk4"
    assert left["stage2.0"].startswith("its shortcut is not the identity")
    short = restack(PreActResNet(PreActBasic, 4), "rk4").restacking
    assert {other.reason for other in short.left if other.name == "stage2.1"} == {
        "its chain of 3 is shorter than the 4 stages of rk4"
    }


def test_it_prints_and_survives_json() -> None:
    model = torchvision.models.resnet18()
    made = restack(model, "midpoint", h=0.5, adaptive="output", example_inputs=torch.randn(2, 3, 32, 32)).restacking
    assert str(made).splitlines() == [
        "ResNet as midpoint (2 stages, order 2), h = 0.5, learnable (output): 1 step of 2 residual blocks",
        "  step 1: layer1.0 – layer1.1, then ReLU",
        *(f"  left layer{i}.0: its shortcut is not the identity but layer{i}.0.downsample.1" for i in (2, 3, 4)),
        "  left layer2.1, layer3.1, layer4.1: its chain of 1 is shorter than the 2 stages of midpoint",
    ]
    again = json.loads(json.dumps(made.to_dict()))
    assert again["groups"] == [{"blocks": ["layer1.0", "layer1.1"], "post": True}]
    assert again["left"][0] == {"name": "layer2.0", "reason": made.left[0].reason}


class Stateful(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.loss = (f := super().forward(x)).square().mean()
        return x + f


@pytest.mark.parametrize("blocks", ["", "xx"])
def test_blocks_that_are_one_call_are_named_and_why(blocks: str) -> None:
    plain = [Outer(1) for _ in blocks]
    model = nn.Sequential(*[Stateful(4, 4) for _ in range(4)], *plain)
    with pytest.raises(
        RestackError, match=r"is seen: 0, 1, 2 and 1 more \(it keeps a computed tensor in the attribute 'loss'"
    ):
        restack(model, "rk4", example_inputs=torch.randn(2, 4))
