"""What a block does inside is seen as it runs, also where the graph has one call of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pararealize import capture, find_blocks
from pararealize.analysis.inner_look import look_inside


class Form(nn.Module):
    """A block of one of several forms; a random number makes it one that is not recorded."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.linear = form, nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x))
        if self.form == "x + f(x)":
            return x + functional.dropout(y, 0.3, self.training)
        if self.form == "in place":
            y += x
            return y
        if self.form == "relu(x + f(x))":
            return torch.relu(y + x)
        if self.form == "two in a row":
            x = x + y
            return (x + torch.tanh(self.linear(x))).view_as(x)
        if self.form == "2 x + f(x)":
            return 2 * x + y
        if self.form == "f(x) + g(x)":
            return self.linear(x) + y
        if self.form == "reads values":
            return x + y if y.sum().item() > 1 else x
        return torch.relu(y)


@pytest.mark.parametrize("form, residual", [
    ("x + f(x)", True), ("in place", True), ("relu(x + f(x))", True), ("two in a row", True),
    ("2 x + f(x)", False), ("f(x) + g(x)", False), ("f(x)", False), ("reads values", None),
])  # fmt: skip
def test_sums_with_the_input_are_seen(form: str, residual: bool | None) -> None:
    model = nn.Sequential(*(Form(form) for _ in range(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chain = find_blocks(capture(model, torch.randn(4, 6), leaf_modules=[Form]))
    assert [node.op for node in chain.blocks[1].nodes] == ["call_module"]
    random_state = torch.get_rng_state()
    look = look_inside(chain, chain.blocks[1])
    assert (None if look is None else look.is_residual) is residual
    if look is not None:
        assert "addmm" in look.operators
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
