"""The monitor: what makes it raise the iterations, that its gradient is the exact one, and what it leaves alone."""

import copy

import pytest
import torch
from test_mgrit import F64, Chains, example

from pararealize import layer_parallel
from pararealize.errors import MultigridError
from pararealize.monitor import Monitor, cosine


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
    ],
)
def test_refusals(settings, words: str) -> None:
    net, _ = made()
    with pytest.raises(MultigridError, match=words):
        Monitor(net, **settings)
