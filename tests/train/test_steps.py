"""Training steps add the gradients of the loss, whatever they do beside it."""

import pytest
import torch
from torch import nn

from pararealize import layer_parallel
from pararealize.models import resnet20
from pararealize.multigrid.monitor import Monitor
from pararealize.train.steps import MonitoredStep, one_process_step, one_shot_step
from tests.training import chain, same


def gradients(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def loss_of(output, target):
    return nn.functional.cross_entropy(output, target)


def deep(**options):
    torch.manual_seed(0)
    options = {"coarsening": 3, "forward_iterations": 1, "backward_iterations": 1, **options}
    return layer_parallel(resnet20().eval(), example_inputs=torch.zeros(2, 3, 8, 8), **options)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([1, 2, 0, 1])


def test_the_step_of_one_process_is_forward_and_backward():
    net, x, target = chain(dropout=0.0), torch.randn(4, 8), torch.tensor([1, 2, 0, 1])
    loss = one_process_step(net)(x, target=target, loss_fn=loss_of)
    stepped = gradients(net)
    net.zero_grad()
    expected = loss_of(net(x), target)
    expected.backward()
    assert same(stepped, gradients(net))
    assert torch.equal(loss, expected.detach())
    assert not loss.requires_grad
    one_process_step(net)(x, target=target, loss_fn=loss_of)  # gradients are added to those that are there
    assert all(torch.equal(2 * stepped[name], gradient) for name, gradient in gradients(net).items())


def test_a_scaler_scales_the_gradients_and_not_the_loss():
    net, x, target = chain(dropout=0.0), torch.randn(4, 8), torch.tensor([1, 2, 0, 1])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = one_process_step(net)(x, target=target, loss_fn=loss_of, scaler=scaler)
    scaled = gradients(net)
    net.zero_grad()
    assert torch.equal(one_process_step(net)(x, target=target, loss_fn=loss_of), loss)
    assert all(torch.allclose(8 * gradient, scaled[name]) for name, gradient in gradients(net).items())


def test_backward_runs_outside_of_autocast():
    seen = []

    class Watching(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            seen.append(torch.is_autocast_enabled("cpu"))
            return gradient

    net = nn.Linear(8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        one_process_step(net)(
            torch.randn(4, 8),
            target=torch.tensor([1, 2, 0, 1]),
            loss_fn=lambda output, target: loss_of(Watching.apply(output), target),
        )
    assert seen == [False]


def test_a_monitored_step_checks_after_backward(batch):
    x, target = batch
    net, twin = deep(), deep()
    monitor = Monitor(net, every=1, cosine=1.0, residual=100.0)
    loss = MonitoredStep(monitor)(x, target=target, loss_fn=loss_of)
    assert torch.equal(loss, one_process_step(twin)(x, target=target, loss_fn=loss_of))
    assert len(monitor.cosines) == 1
    assert len(monitor.events) == 1  # no cosine is 1, and so the exact gradient took the other's place
    with twin.serially():
        twin.zero_grad()
        one_process_step(twin)(x, target=target, loss_fn=loss_of)
    exact = gradients(twin)
    assert all(torch.allclose(gradient, exact[name], atol=1e-6) for name, gradient in gradients(net).items())


def test_one_shot_steps_go_on_from_the_last_solve_of_each_sample(batch):
    """With the weights as they are, a few one-iteration steps reach the exact loss; without the states none does."""
    x, target = batch
    net, exact = deep(warm_start=True), deep()
    with exact.serially(), torch.no_grad():
        expected = loss_of(exact(x), target)
    step = one_shot_step(net)
    errors = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0], [0, 1, 2, 3], [1, 0, 3, 2]):  # samples, not their places
        errors.append((step(x[order], target=target[order], loss_fn=loss_of) - expected).abs().item())
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-5
    cold = one_shot_step(net)  # which has seen no sample
    assert (cold(x, target=target, loss_fn=loss_of) - expected).abs().item() == pytest.approx(errors[0], rel=1e-4)
