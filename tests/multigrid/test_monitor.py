"""The monitor: what makes it raise the iterations, that its gradient is the exact one, and what it leaves alone."""

import copy

import pytest
import torch

from pararealize import layer_parallel
from pararealize.errors import CheckpointError, MultigridError
from pararealize.multigrid.monitor import Event, Monitor, cosine
from pararealize.train.steps import MonitoredStep, one_process_step
from tests.chains import F64, Chains, example


def made(h: float = 0.5, **kind):
    torch.manual_seed(0)
    x = example(8)
    return layer_parallel(Chains((12,), (6,), h=h, **kind).double(), 2, 3, 1, 1, example_inputs=x), x


def step(net, x) -> torch.Tensor:
    net.zero_grad()
    loss = net(x).square().mean()
    loss.backward()
    return loss


def test_a_large_residual_raises_the_iterations_up_to_exact() -> None:
    net, x = made()
    monitor = Monitor(net, every=1000, residual=1e-9, most=3)
    seen = []
    for _ in range(4):
        step(net, x)
        monitor.check(lambda: net(x).square().mean())
        seen.append((net.forward_iterations, net.backward_iterations, net.exact))
    assert seen == [(2, 1, False), (3, 2, False), (3, 2, True), (3, 2, True)]
    assert [event.step for event in monitor.events] == [1, 2, 3]
    assert "the residual is" in str(monitor)
    assert "exact from here on" in str(monitor)


def test_a_small_residual_and_a_good_gradient_raise_nothing() -> None:
    net, x = made(h=1e-3)
    monitor = Monitor(net, every=2)
    for _ in range(6):
        step(net, x)
        monitor.check(lambda: net(x).square().mean())
    assert not monitor.events
    assert [at for at, _ in monitor.cosines] == [2, 4, 6]
    assert all(value > 0.999 for _, value in monitor.cosines)


@pytest.mark.parametrize("kind", [{}, {"norm": True}, {"drop": 0.5}])
def test_the_exact_gradient_is_taken_with_the_same_masks_and_statistics_count_once(kind) -> None:
    net, x = made(**kind)
    converged = copy.deepcopy(net)
    converged.forward_iterations = converged.backward_iterations = 5
    monitor = Monitor(net, every=1, cosine=0.9999999, residual=1e9)
    torch.manual_seed(3)
    step(converged, x)
    torch.manual_seed(3)
    step(net, x)
    drawn = torch.get_rng_state()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    monitor.check(lambda: net(x).square().mean())
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])
    for ours, theirs in zip(net.parameters(), converged.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    assert "cosine" in monitor.events[0].why
    assert net.forward_iterations == 2


def test_exact_steps_at_the_end() -> None:
    net, x = made(h=1e-3)
    monitor = Monitor(net, exact_after=2)
    for expected in (False, True, True):
        step(net, x)
        monitor.check(lambda: net(x).square().mean())
        assert net.exact is expected
    assert len(monitor.events) == 1


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
def test_a_monitored_step_gives_the_exact_steps_gradient_in_any_precision(amp) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(8, 3), torch.randn(8, 2)
    net = layer_parallel(Chains((12,), (6,), h=0.5), 2, 3, 1, 1, example_inputs=x)
    exact, series = copy.deepcopy(net), copy.deepcopy(net)
    exact.exact = True
    monitor = Monitor(net, every=1, cosine=1.0, residual=1e9)
    scaler = torch.amp.GradScaler("cpu") if amp is torch.float16 else None
    losses = []
    for step in (MonitoredStep(monitor), one_process_step(exact), one_process_step(series)):
        with torch.autocast("cpu", amp, enabled=amp is not None), series.in_series():
            losses.append(step(x, target=target, loss_fn=torch.nn.functional.mse_loss, scaler=scaler))
    assert not torch.equal(*losses[:2])  # the one that was trained with, not the exact one
    for ours, theirs, third in zip(net.parameters(), exact.parameters(), series.parameters(), strict=True):
        assert torch.equal(ours.grad, third.grad)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5 if amp is None else 2e-2, atol=1e-4)
    assert monitor.cosines[0][1] < 1


@pytest.mark.parametrize("zeroed", ["never", "between", "before backward", "in place"])
def test_gradients_of_earlier_backward_passes_stay_added(zeroed: str) -> None:
    net, x = made()
    exact = copy.deepcopy(net)
    monitor = Monitor(net, every=1, cosine=-1.0, residual=1e9)
    single = copy.deepcopy(net)
    alone, parts = Monitor(single, every=1, cosine=-1.0, residual=1e9), x.split(4)
    for i, part in enumerate(parts):
        step(single, part)
        alone.check(lambda part=part: single(part).square().mean())
        if i and zeroed == "between":
            net.zero_grad()
        loss = net(part).square().mean()
        if i and zeroed in ("before backward", "in place"):
            net.zero_grad(set_to_none=zeroed == "before backward")
        loss.backward()
        monitor.check(lambda part=part: net(part).square().mean())
    with exact.serially():
        for part in parts if zeroed == "never" else parts[1:]:
            exact(part).square().mean().backward()
    for ours, theirs in zip(net.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert dict(monitor.cosines) == pytest.approx(dict(alone.cosines), rel=1e-9)


def test_what_two_backward_passes_added_is_one_gradient_where_they_are_checked_together() -> None:
    net, x = made()
    exact, monitor, parts = copy.deepcopy(net), Monitor(net, every=1, cosine=-1.0, residual=1e9), x.split(4)
    for part in parts:
        net(part).square().mean().backward()
    monitor.check(lambda: sum(net(part).square().mean() for part in parts))
    with exact.serially():
        sum(exact(part).square().mean() for part in parts).backward()
    for ours, theirs in zip(net.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_frozen_layers_have_the_stems_gradient_compared_and_a_head_alone_none() -> None:
    net, x = made()
    layers = {id(p) for row in net.rows for p in row.parameters()}
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) not in layers)
    monitor = Monitor(net, every=1, cosine=0.9999999, residual=1e9)
    step(net, x)
    monitor.check(lambda: net(x).square().mean())
    assert 0 < monitor.cosines[0][1] < 1
    for node in net.structure.stem.nodes:
        if node.op == "call_module":
            net.get_submodule(node.target).requires_grad_(False)
    count, raised = len(monitor.events), net.forward_iterations
    step(net, x)
    monitor.check(lambda: net(x).square().mean())
    assert (len(monitor.cosines), len(monitor.events), net.forward_iterations) == (1, count, raised)


def test_gradients_that_are_zero_are_equal() -> None:
    net, x = made()
    monitor = Monitor(net, every=1, residual=1e9)
    net.zero_grad()
    (0 * net(x)).sum().backward()
    monitor.check(lambda: (0 * net(x)).sum())
    assert monitor.cosines == [(1, 1.0)]
    assert not monitor.events


def test_a_check_without_a_call_is_refused_and_exact_steps_count() -> None:
    net, x = made()
    step(net, x)
    monitor = Monitor(net, every=1)
    for _ in range(2):
        with pytest.raises(MultigridError, match="saw no call of the network since its last check"):
            monitor.check(lambda: net(x).square().mean())
        assert monitor.steps == 0
    with net.serially():
        step(net, x)
    monitor.check(lambda: net(x).square().mean())
    assert (monitor.steps, monitor.cosines, monitor.events) == (1, [], [])


def test_what_a_scale_made_overflow_raises_nothing() -> None:
    net, x = made()
    net, x = net.float(), x.float()
    monitor, scaler = Monitor(net, every=1, residual=1e9), torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = net.forward_iterations
    for count in (0, 1):
        with torch.autocast("cpu", torch.float16):
            MonitoredStep(monitor)(x, target=x[:, :2], loss_fn=torch.nn.functional.mse_loss, scaler=scaler)
        assert (net.forward_iterations, monitor.events, len(monitor.cosines)) == (before, [], count)
        net.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        monitor.cosine = -1.0


def test_a_state_goes_to_another_monitor() -> None:
    net, x = made()
    monitor = Monitor(net, every=2, residual=1e-9, most=2)
    step(net, x)
    monitor.check(lambda: net(x).square().mean())
    other, _ = made()
    again = Monitor(other, every=2, residual=1e-9, most=2)
    again.load_state_dict(monitor.state_dict())
    assert other.forward_iterations == 2
    for _ in range(2):
        for mine, each in ((net, monitor), (other, again)):
            step(mine, x)
            each.check(lambda mine=mine: mine(x).square().mean())
    assert again.events == monitor.events
    assert again.events[1] == Event(step=2, why=again.events[1].why, forward=0, backward=0)
    assert again.state_dict() == monitor.state_dict()
    assert other.exact
    with pytest.raises(CheckpointError, match=r"no state of a monitor \(KeyError: 'events'\)"):
        again.load_state_dict({"steps": 1})
    assert again.state_dict() == monitor.state_dict()


def test_cosine_of_parts() -> None:
    a, b = torch.tensor([3.0, 0.0], dtype=F64), torch.tensor([0.0, 4.0], dtype=F64)
    assert cosine([a, b], [a, b]) == pytest.approx(1)
    assert cosine([a, b], [a, -b]) == pytest.approx((9 - 16) / 25)
    assert cosine([a], [0 * a]) != cosine([a], [0 * a])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"every": 0}, "every is 0"),
        ({"most": 1.5}, "most is 1.5"),
        ({"exact_after": 0}, "exact_after is 0"),
        ({"cosine": 2.0}, "cosine is 2.0"),
        ({"residual": 0.0}, "residual is 0.0"),
        ({"cosine": "a", "residual": None}, "cosine is 'a'; pass a number; and residual is None"),
        ({"exact_after": "2"}, "exact_after is '2'; pass a whole number or None"),
    ],
)
def test_refusals(settings, words: str) -> None:
    net, _ = made()
    with pytest.raises(MultigridError, match=words):
        Monitor(net, **settings)
    with pytest.raises(MultigridError, match="net is a Chains; pass a LayerParallel"):
        Monitor(Chains((3,), (4,)))
