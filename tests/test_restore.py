"""Whatever is done with a model while it is recorded, it is left as found."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pararealize.restore import as_written, left_as_found, preserve_training_flags, set_within
from pararealize.tracing.front_end import capture


def test_the_model_is_left_as_found() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[int] = []
            self.cache: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(1)
            self.cache = x * 2
            return self.cache

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = Remembering()
            self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.norm(self.memory(self.linear(x))))

    model = Caching()
    model.norm.eval()
    model.linear.register_forward_hook(lambda module, args, output: output * 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    parameters = list(model.parameters())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    captured = capture(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert model.memory.cache is None
    assert model.memory.calls == []
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(value is mine for value, mine in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()
    model.eval()
    x = torch.randn(3, 4)
    assert torch.equal(captured.graph_module(x), model(x))


def test_left_as_found_puts_values_and_random_states_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6))
    model.hooks = OrderedDict(a=1)  # type: ignore[assignment]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    with left_as_found(model):
        random.random(), np.random.rand(), torch.rand(1)
        model.hooks["b"] = 2  # type: ignore[index, operator]
        model.eval()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert states[:2] == (random.getstate(), np.random.get_state()[2])
    assert torch.equal(states[2], torch.get_rng_state())
    assert model.hooks == {"a": 1}
    assert model.training
    assert model[0].training


def test_training_flags_are_put_back_one_by_one() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()
    flags = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), preserve_training_flags(model):  # noqa: PT012
        model.eval()
        _ = 1 / 0
    assert [module.training for module in model.modules()] == flags
    assert len(set(flags)) == 2


def test_an_attribute_is_put_back_even_where_a_module_bears_its_name() -> None:
    model = nn.Module()
    model.add_module("exact", nn.Identity())
    model.__dict__["exact"] = False
    with pytest.raises(ZeroDivisionError), set_within(model, "exact", True):  # noqa: PT012
        assert model.exact is True
        _ = 1 / 0
    assert model.exact is False
    assert isinstance(model._modules["exact"], nn.Identity)


def test_what_is_compiled_runs_as_it_was_written() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with as_written():
        assert double(torch.ones(())).item() == 2
        assert compiled == []
    assert double(torch.ones(())).item() == 2
    assert len(compiled) == 1
