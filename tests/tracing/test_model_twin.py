"""A twin does what its original does, and nothing that is done to the twin reaches the original."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize.tracing.model_twin import copy_plain_layers, real_twin


class Stateful(nn.Module):
    """Every sort of state that a module may have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.tied = self.linear
        self.register_buffer("table", torch.randn(4, 4))
        self.register_buffer("row", self.table[1])
        self.constant, self.seen, self.cache = torch.randn(4), [torch.zeros(4)], {"sum": [0.0]}
        self.computed = self.linear.weight.sum() * 2
        self.lock = threading.Lock()
        self.parents = [self]
        self.count = 0

    def forward(self, x: Tensor) -> Any:
        self.count += 1
        self.cache["sum"].append(float(self.count))
        self.seen[0] = self.seen[0] + x.detach().mean()
        with torch.no_grad():
            self.table[1] += 1
            self.linear.weight.mul_(0.5)
            self.constant.add_(1)
        return self.norm(self.tied(x)) + self.row + self.constant + self.seen[0]


def contents(model: Stateful) -> list[Any]:
    state = [value.clone() for value in model.state_dict().values()]
    return [*state, model.constant.clone(), model.seen[0].clone(), model.count, len(model.cache["sum"])]


def test_a_twin_is_the_model_and_leaves_it_alone() -> None:
    torch.manual_seed(0)
    model, x = Stateful(), torch.randn(3, 4)
    before = contents(model)
    twin, memo = real_twin(model)
    assert type(twin) is Stateful
    results = [twin(x), twin(x)]
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(before, contents(model)))
    assert [torch.equal(ours, theirs) for ours, theirs in zip([model(x), model(x)], results, strict=True)] == [True] * 2
    assert twin.tied is twin.linear
    assert twin.parents[0] is twin
    assert memo[id(model.constant)] is twin.constant
    assert twin.lock is model.lock
    assert torch.equal(twin.row, twin.table[1]), "a view stays a view"


@pytest.mark.parametrize("share", [False, True])
def test_parameters_may_share_memory(share: bool) -> None:
    model = nn.Linear(4, 4)
    model.bias.requires_grad_(False)
    twin, _ = real_twin(model, share_parameters=share)
    assert (twin.weight.data_ptr() == model.weight.data_ptr()) is share
    assert twin.weight is not model.weight
    assert [p.requires_grad for p in twin.parameters()] == [True, False]
    twin(torch.randn(2, 4)).sum().backward()
    assert model.weight.grad is None


def test_sparse_and_empty_tensors() -> None:
    model = nn.Linear(2, 2)
    for name, tensor in {"sparse": torch.eye(2).to_sparse(), "empty": torch.empty(0), "none": None}.items():
        model.register_buffer(name, tensor)
    twin, _ = real_twin(model)
    assert torch.equal(twin.sparse.to_dense(), torch.eye(2))
    assert twin.empty.shape == (0,)
    assert twin.none is None


def test_parameters_of_inference_mode_may_require_a_gradient() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    twin, _ = real_twin(model, share_parameters=True)
    twin(torch.ones(1, 2)).sum().backward()
    assert twin.weight.grad is not None
    assert torch.equal(twin.weight, model.weight)


def test_plain_layers_are_copied_as_a_deep_copy_would() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Stateful(), nn.Linear(4, 2))
    model.append(model[0])
    model[4].weight = model[3].linear.weight  # tied across the layers that are copied and those that are left
    model[2].register_forward_hook(lambda *_: None)  # not a plain layer
    del model[3].lock
    model[3].computed = None
    memo: dict[int, Any] = {}
    copy_plain_layers(model, memo)
    assert {id(model[0]), id(model[1]), id(model[4]), id(model[3].linear)} <= memo.keys()
    assert id(model[2]) not in memo
    ours, theirs = copy.deepcopy(model, memo), copy.deepcopy(model)
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
    for a, b in zip(ours.modules(), theirs.modules(), strict=True):
        assert vars(a).keys() == vars(b).keys()
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    pointers = {value.data_ptr() for value in model.state_dict().values()}
    assert not pointers & {value.data_ptr() for value in ours.state_dict().values()}
    assert ours[5] is ours[0]
    assert ours[4].weight is ours[3].linear.weight


def test_buffers_of_plain_layers_are_copied_as_a_deep_copy_would() -> None:
    memory = torch.arange(8.0)
    buffers = {
        "whole": torch.arange(3.0),
        "view": memory[2:5],
        "other_view": memory[4:],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "expanded": torch.ones(1).expand(4),
        "meta": torch.empty(2, device="meta"),
        "graded": torch.ones(2, requires_grad=True),
        "marked": torch.ones(2),
    }
    buffers["marked"].note = ["kept"]  # type: ignore[attr-defined]
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    for name, buffer in buffers.items():
        model[0].register_buffer(name, buffer)
    model[1].register_buffer("again", buffers["whole"])
    memo: dict[int, Any] = {}
    copy_plain_layers(model, memo)
    assert {id(model[0]), id(model[1])} <= memo.keys()
    ours, theirs = copy.deepcopy(model, memo), copy.deepcopy(model)
    for name, expected in theirs[0].named_buffers():
        got = ours[0].get_buffer(name)
        assert type(got) is type(expected)
        assert got is not model[0].get_buffer(name)
        assert (got.stride(), got.device, got.requires_grad) == (
            expected.stride(),
            expected.device,
            expected.requires_grad,
        )
        assert got.is_meta or torch.equal(got, expected)
    assert ours[1].again is ours[0].whole
    ours[0].view[2] = 100
    assert ours[0].other_view[0] == 100, "views of one memory stay views of one memory"
    assert memory[4] == 4
    assert ours[0].marked.note == ["kept"]
    assert ours[0].marked.note is not buffers["marked"].note  # type: ignore[attr-defined]
    ours[0].whole[0] = 100
    assert buffers["whole"][0] == 0
