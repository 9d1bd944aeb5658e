"""Stacked segments compute what they compute apart: outputs, gradients, buffers; and which can be stacked at all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.network.local import stacking
from pararealize.network.local.module import run_local
from pararealize.network.local.stacking import Stack, pays, stacks_of
from tests.models import MaskedTransformer, Residual, SmallResNet


class Norms(nn.Module):
    """A block that begins in place, with batch norm, dropout, a parameter of its own and nested modules."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.body = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, groups=2), nn.Tanh())
        self.scale = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.drop(self.body(self.act(x)))


class Attention(nn.Module):
    """A layer of a vision transformer: attention by hand, layer norm, perceptron."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 2, -1).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(x)


def chain_of(make, depth: int, x: Tensor, n: int, **arguments) -> tuple[PararealModule, Tensor]:
    torch.manual_seed(1)
    first = nn.Conv2d(4, 4, 1) if x.ndim == 4 else nn.Linear(8, 8)
    net = nn.Sequential(first, nn.Sequential(*(make() for _ in range(depth))), nn.Flatten(), nn.LazyLinear(3))
    net(x)
    return pararealize(net, n=n, example_inputs=x, **{"coarse": "linear", "cuts": "paper", **arguments}), x


NETWORKS = {
    "batch norm": lambda: chain_of(lambda: Norms(4, 0.0), 4, torch.randn(5, 4, 6, 6), 2),
    "residual": lambda: chain_of(lambda: Residual(4), 6, torch.randn(5, 4, 6, 6), 3),
    "attention": lambda: chain_of(Attention, 4, torch.randn(5, 7, 8), 4),
    "windows": lambda: chain_of(lambda: Residual(4), 4, torch.randn(5, 4, 6, 6), 2, windows=2, coarse="scale"),
    "vectors": lambda: chain_of(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), 6, torch.randn(5, 8), 3),
}


def groups(net: PararealModule) -> list[tuple[str, ...]]:
    return [stack.segments for stack in stacks_of(net)[0]]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_buffers(name: str, training: bool) -> None:
    net, x = NETWORKS[name]()
    assert groups(net) == [tuple(row.name for row in window.segments) for window in net.plan.windows]
    net.train(training).double()
    twin, x = copy.deepcopy(net), x.double()
    stacked = run_local(net, stack=True)
    for _ in range(2):
        x = x + 1
        ours, theirs = stacked(x), twin(x)
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
        ours.square().sum().backward()
        theirs.square().sum().backward()
    for (key, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert a.grad is not None, key
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-9), key  # type: ignore[arg-type]
    for (key, a), b in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), key


def test_optimisers_and_checkpoints_reach_the_parameters() -> None:
    net, x = NETWORKS["vectors"]()
    stacked = run_local(net, stack=True)
    before = stacked(x).detach()
    state = {key: 0.5 * value for key, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)  # type: ignore[arg-type]
    assert not torch.allclose(stacked(x), before)
    assert torch.allclose(stacked(x), net(x), atol=1e-5)


def test_an_input_may_have_a_segments_letter_as_its_name() -> None:
    """Nodes were once taken by their names, and the input y_1 for the output of segment 1."""

    class Named(nn.Sequential):
        def forward(self, y_1: Tensor) -> Tensor:
            return super().forward(y_1)

    x = torch.randn(5, 8)
    net = pararealize(Named(*(nn.Linear(8, 8) for _ in range(4))), n=3, example_inputs=x, cuts=["2", "3"])
    local = run_local(net, stack=True)
    assert local.stacks
    assert torch.allclose(local(x), net(x), atol=1e-5)


def test_random_numbers_differ_between_segments() -> None:
    net, x = chain_of(lambda: Norms(4, 0.5), 4, torch.randn(5, 4, 6, 6), 2)
    (stack,), _ = stacks_of(net)
    first, second = stack.pieces
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        q.data.copy_(p.data)
    a, b = stack(x.clone(), x.clone())
    assert not torch.equal(a, b)
    net.eval()
    for p, q in zip(first.buffers(), second.buffers(), strict=True):
        q.copy_(p)
    a, b = stack(x.clone(), x.clone())
    assert torch.equal(a, b)


def test_frozen_parameters_and_modes_of_one_segment() -> None:
    net, x = NETWORKS["batch norm"]()
    twin = copy.deepcopy(net)
    for network in (net, twin):
        next(network.segments["g2"].parameters()).requires_grad_(False)
        for module in stacks_of(network)[0][0].leaves[1]:
            module.eval()  # one segment's batch norm is frozen: no longer alike, so one by one
    run_local(net, stack=True)(x).sum().backward()
    twin(x).sum().backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-5)  # type: ignore[arg-type]
    assert all(torch.allclose(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


def test_what_is_left_out_and_why() -> None:
    class Own(nn.Linear):
        """A layer of another library, as far as anyone can tell."""

    def left_out(net: PararealModule) -> str:
        stacks, reasons = stacks_of(net)
        assert not stacks
        return "; ".join(reasons.values())

    masks = pararealize(MaskedTransformer(), n=2, example_inputs=torch.randint(0, 11, (4, 5)))
    assert "reads context" in left_out(masks)
    images = torch.randn(2, 3, 8, 8)
    stages = pararealize(SmallResNet(), n=2, example_inputs=images, cuts=["layer2.0"])
    assert "no other segment has its structure" in left_out(stages)
    tied = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 2))
    tied[1].weight = tied[0].weight
    tied[3].weight = tied[2].weight
    assert "ties parameters" in left_out(pararealize(tied, n=2, cuts=["2"]))
    own = pararealize(nn.Sequential(*(Own(8, 8) for _ in range(4))), n=2, leaf_modules=[Own])
    assert "is a Own, whose settings cannot be compared" in left_out(own)


@pytest.mark.parametrize("change", [nn.Linear(8, 8, bias=False), nn.Dropout(0.3), nn.LayerNorm(8, eps=0.1)])
def test_other_settings_are_another_structure(change: nn.Module) -> None:
    def layer() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.LayerNorm(8))

    changed = [layer(), layer(), layer()]
    place = next(i for i, module in enumerate(changed[2]) if type(module) is type(change))
    changed[2][place] = change
    for layers, expected in ([layer(), layer(), layer()], [("g1", "g2", "g3")]), (changed, [("g1", "g2")]):
        model = nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 2))
        assert groups(pararealize(model, n=3, coarse="linear", cuts=["2", "3"])) == expected


def test_whether_it_pays_is_measured_and_leaves_no_trace() -> None:
    net, x = NETWORKS["residual"]()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    local = run_local(net, x, stack="auto")
    assert [stack.segments for stack in local.stacks] in ([], [("g1", "g2", "g3")])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_faster_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = NETWORKS["vectors"]()
    (stack,), _ = stacks_of(net)
    for stacked_seconds, expected in (1.0, True), (3.0, False):
        monkeypatch.setattr(
            stacking, "_seconds", lambda run, *_, s=stacked_seconds, **__: s if isinstance(run, Stack) else 2.0
        )
        assert pays(stack, [x, x, x]) is expected
        assert len(run_local(net, x, stack="auto").stacks) == expected
