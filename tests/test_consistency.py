"""Proposition 1 on whole networks, through the compiler: with F^j = g^{j+1}, a linear network is left as it is."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize import PararealizeError, Plan, find_blocks, pararealize
from pararealize.tracing.front_end import capture
from tests.models import Perceptron, RandomGraph, SmallResNet, linear_networks, random_graphs


def gradients(model: nn.Module, x: Tensor, names: list[str]) -> list[Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, model(x).numel(), dtype=x.dtype)
    (model(x).flatten() * weights).sum().backward()
    found = dict(model.named_parameters())
    return [g if (g := found[name].grad) is not None else torch.zeros_like(found[name]) for name in names]


@settings(max_examples=40)
@given(
    linear_networks(),
    st.integers(1, 6),
    st.sampled_from(["cost", "paper"]),
    st.integers(1, 4),
    st.sets(st.integers(0, 5), max_size=2),
    st.sampled_from(["repeated", "finest"]),
)
def test_exact_coarse_blocks_leave_a_linear_network_as_it_is(
    case: tuple[nn.Module, Tensor], n: int, cuts: str, windows: int, still: set[int], granularity: str
) -> None:
    """With any windows, and blocks anywhere that run as in the original."""
    model, x = case
    blocks = find_blocks(capture(model, x), granularity=granularity).blocks
    still = {i for i in still if i < len(blocks)}
    windows = min(windows, max(len(blocks) - len(still), 1))
    runs = [len(list(run)) for flag, run in itertools.groupby(range(len(blocks)), lambda i: i in still) if not flag]
    n = min(n, max(runs, default=1) if windows == 1 else len(blocks))
    sequential = [block.name for i, block in enumerate(blocks) if i in still]
    net = pararealize(
        model, n=n, example_inputs=x, coarse="exact", cuts=cuts, windows=windows, sequential=sequential,
        granularity=granularity,
    )  # fmt: skip
    for segment in net.plan.segments:
        single = net.plan.windows[max(segment.m, 1) - 1].sequential
        assert single or not still & set(range(segment.first, segment.last + 1))
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


@settings(max_examples=15)
@given(
    random_graphs(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.sampled_from(["repeated", "finest"])
)
def test_random_networks_are_converted_right_or_refused(
    case: tuple[RandomGraph, Tensor], n: int, windows: int, deeper: int, granularity: str
) -> None:
    """As many windows as blocks is the original to the bit, and so is what the last iteration of parareal gives."""
    model, x = case
    cut = {"example_inputs": x, "sequential": deeper, "granularity": granularity}
    try:
        net = pararealize(model, n=n, coarse="linear", windows=windows, **cut)
    except PararealizeError:
        return
    blocks = max(net.plan.segments[-1].last + 1 - deeper, 1)
    single = pararealize(model, n=n, windows=blocks, **cut)
    assert single.plan.n == 1
    names = [name for name, _ in model.eval().named_parameters()]
    for ours, theirs in zip(gradients(single.eval(), x, names), gradients(model, x, names), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(net.eval().iterate(x, net.plan.n - 1), model(x))
    for training in (True, False):
        for rows in (x, x[:3].repeat(3, 1)):
            outputs = []
            for network in (copy.deepcopy(single), copy.deepcopy(model)):
                torch.manual_seed(1)
                outputs.append(network.train(training)(rows))
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


def test_networks_of_windows_are_networks_like_any_other() -> None:
    """Names, equations, weights, copies, devices, hooks, other sizes, and a plan that makes the same again."""
    torch.manual_seed(0)
    model, x, larger = SmallResNet(), torch.randn(4, 3, 8, 8), torch.randn(2, 3, 13, 12)
    calls: list[object] = []
    model.layer2[1].register_forward_hook(lambda *_: calls.append(None))
    net = pararealize(model, 2, example_inputs=x, coarse="linear", windows=["layer2.0"], sequential=["layer1.0"]).eval()
    assert [window.n for window in net.plan.windows] == [1, 2, 2]
    for line in (
        "x_2_2 = self.adapters.C2_2(y_1_1)", "x_3_2 = self.adapters.C3_2(w_2)",
        "y_2_2 = self.segments.g2_2(x_2_2)", "r_2_1 = y_2_1 - x_2_2",
        "F_2_1 = self.coarse.F2_1(r_2_1)", "w_2 = y_2_2 + F_2_1", "y_3_1 = self.segments.g3_1(w_2)",
        "= self.head(w_3)",
    ):  # fmt: skip
        assert line in net.code
    assert list(net.original_state_dict()) == list(model.state_dict())
    assert {key.partition(".")[2].partition(".")[0] for key in net.state_dict() if key.startswith("adapters")} <= {
        row.name for row in net.plan.adapters
    }
    other = pararealize(SmallResNet(), 3, example_inputs=x, windows=["layer2.0"]).eval()
    other.load_original_state_dict(net.original_state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.original_state_dict().values(), model.state_dict().values()))

    y = net(x)
    calls.clear()
    assert torch.equal(net(x), y)
    assert len(calls) == 1
    assert torch.equal(copy.deepcopy(net)(x), y)
    plan = Plan.from_json(net.plan.to_json())
    assert plan == net.plan
    for example in (x, larger):
        again = pararealize(model, example_inputs=example, coarse="linear", plan=plan, devices=["cpu", "cpu"]).eval()
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(example), net(example))
        assert torch.equal(net.iterate(example, 1), model.eval()(example))
