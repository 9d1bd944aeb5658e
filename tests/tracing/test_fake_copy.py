"""The copy that is recorded has the model's structure and Python state, and none of its memory."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pararealize.tracing.fake_copy import copy_on_fakes


class Odd(nn.Module):
    """Attributes of every sort: of the model's own modules and tensors, shared, bound, and not to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.ones(2))
        self.register_parameter("absent", None)
        self.constant = torch.arange(3)
        self.order = [self.second, self.first]
        self.settings = {"scale": [1.0]}
        self.lock = threading.Lock()
        self.step = functools.partial(self.shift, by=2)
        self.first.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.settings["scale"].append(2.0)

    def shift(self, x: Tensor, by: int) -> Tensor:
        return x + by

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.order[0](self.first(x)))


def test_what_refers_to_the_model_refers_to_the_copy() -> None:
    model = Odd()
    copy = copy_on_fakes(model)
    twin: Any = copy.model
    assert isinstance(twin, Odd)
    assert twin is not model
    assert dict(twin.named_modules()).keys() == dict(model.named_modules()).keys()
    assert twin.order == [twin.second, twin.first]
    assert twin.step.func.__self__ is twin
    (hook,) = twin.first._forward_hooks.values()
    assert hook.__self__ is twin
    assert twin.lock is model.lock, "what cannot be copied is shared"
    twin.settings["scale"].append(3.0)
    assert model.settings == {"scale": [1.0]}


def test_parameters_and_buffers_have_no_memory_and_tied_ones_are_one() -> None:
    model = Odd()
    copy = copy_on_fakes(model)
    for name, tensor in {**dict(copy.model.named_parameters()), **dict(copy.model.named_buffers())}.items():
        assert isinstance(tensor, FakeTensor)
        assert copy.attributes[id(tensor)] == (tensor, name)
        assert copy.leaves.real[id(tensor)] is model.state_dict(keep_vars=True)[name]
    assert copy.model.second.weight is copy.model.first.weight
    assert isinstance(copy.model.first.weight, nn.Parameter)
    assert torch.equal(copy.model.constant, model.constant)
    assert copy.model.constant is not model.constant  # a forward may change it
    assert not copy.constants  # the root of a conversion is of another class, and may have this name


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer])
def test_fused_attention_is_not_taken_on_the_copy(kind: Any) -> None:
    """It gives another tuple, in eval mode alone; torch takes it where no parameter requires a gradient."""
    copy = copy_on_fakes(nn.Sequential(kind(8, 2).requires_grad_(False)))
    assert all(parameter.requires_grad for parameter in copy.model[0].parameters(recurse=False))
