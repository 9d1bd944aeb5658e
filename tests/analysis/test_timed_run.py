"""A timed run adds up gradients as a step does, in copies, and leaves the module as it was."""

from __future__ import annotations

import torch
from torch import nn

from pararealize.analysis.timed_run import TimedRun


def test_gradients_are_added_up_in_copies() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = list(module.parameters())
    x = torch.randn(5, 3, requires_grad=True)
    run = TimedRun(module, [x], lambda tensor: tensor.detach().clone())
    for _ in range(2):  # gradients of the first run are forgotten in the second
        run.reset()
        run.backward(run.forward())
    assert all(now is then for now, then in zip(module.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in parameters)
    module(x * 1.0).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(run.tensors[name].grad, parameter.grad, atol=1e-6)
