"""Proposition 1 on whole networks, through the compiler: with F^j = g^{j+1}, a linear network is left as it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize import PararealizeError, find_blocks, pararealize
from pararealize.tracing.front_end import capture
from tests.models import Perceptron, RandomGraph, SmallResNet, linear_networks, random_graphs


def gradients(model: nn.Module, x: Tensor, names: list[str]) -> list[Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, model(x).numel(), dtype=x.dtype)
    (model(x).flatten() * weights).sum().backward()
    found = dict(model.named_parameters())
    return [g if (g := found[name].grad) is not None else torch.zeros_like(found[name]) for name in names]


@settings(max_examples=40)
@given(linear_networks(), st.integers(1, 6), st.sampled_from(["cost", "paper"]), st.integers(0, 2))
def test_exact_coarse_blocks_leave_a_linear_network_as_it_is(
    case: tuple[nn.Module, Tensor], n: int, cuts: str, deeper: int
) -> None:
    model, x = case
    blocks = len(find_blocks(capture(model, x)).blocks)
    deeper = min(deeper, blocks - 1)
    n = min(n, blocks - deeper)
    net = pararealize(model, n=n, example_inputs=x, coarse="exact", cuts=cuts, sequential=deeper)
    expected, got = model(x), net(x)
    assert (got - expected).norm() <= 1e-10 * expected.norm() + 1e-14
    names = [name for name, _ in model.named_parameters()]
    for name, ours, theirs in zip(names, gradients(net, x, names), gradients(model, x, names), strict=True):
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm() + 1e-12, name


def test_other_coarse_blocks_do_not() -> None:
    """The property above can fail: with the paper's coarse blocks the network is another one."""
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4))).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    net = pararealize(model, n=4, example_inputs=x, coarse="linear")
    assert not torch.allclose(net(x), model(x))


@settings(max_examples=40)
@given(random_graphs(), st.integers(1, 4), st.integers(0, 2))
def test_random_networks_are_converted_right_or_refused(case: tuple[RandomGraph, Tensor], n: int, deeper: int) -> None:
    model, x = case
    try:
        net = pararealize(model, n=n, example_inputs=x, coarse="linear", sequential=deeper)
    except PararealizeError:
        return
    single = net if n == 1 else pararealize(model, n=1, example_inputs=x, sequential=deeper)
    for training in (True, False):
        for rows in (x, x[:3].repeat(3, 1)):
            model.train(training)
            single.train(training)
            twins = [pararealize(model, n=1, example_inputs=x, sequential=deeper).train(training), model]
            outputs = []
            for network in twins:
                torch.manual_seed(1)
                outputs.append(network(rows))
            assert torch.equal(*outputs)
    net.train()
    net(x).sum().backward()
    assert net(x[:3]).shape == (3, model.width)


@pytest.mark.parametrize("model", [SmallResNet(), Perceptron()])
def test_one_segment_is_the_original(model: nn.Module) -> None:
    x = torch.randn(4, 8) if isinstance(model, Perceptron) else torch.randn(4, 3, 8, 8)
    net = pararealize(model, n=1, example_inputs=x)
    assert list(net.state_dict()) == list(model.state_dict())
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in net.named_parameters()] == names
    assert all(torch.equal(a, b) for a, b in zip(gradients(net, x, names), gradients(model, x, names), strict=True))
    model.eval(), net.eval()
    assert torch.equal(net(x), model(x))
