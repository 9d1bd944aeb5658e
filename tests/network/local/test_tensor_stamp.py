"""Whether a module's tensors are where they were: all at a check, a fixed number at a look."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pararealize.errors import ModelError
from pararealize.network.local.tensor_stamp import LOOKS, TensorStamp


def module_of(count: int) -> nn.Module:
    return nn.ParameterList([torch.zeros(1) for _ in range(count)])


@settings(max_examples=20)
@given(count=st.integers(1, 5 * LOOKS), data=st.data())
def test_each_change_is_seen_within_so_many_looks(count: int, data: st.DataObject) -> None:
    module = module_of(count)
    stamp = TensorStamp(module, "it")
    for _ in range(data.draw(st.integers(0, 7))):
        stamp.look()
    i = data.draw(st.integers(0, count - 1))
    how = data.draw(st.sampled_from(["replaced", "moved", "frozen", "removed"]))
    if how == "replaced":
        module._parameters[str(i)] = nn.Parameter(torch.zeros(1))
    elif how == "moved":
        parameter = module._parameters[str(i)]
        assert parameter is not None
        parameter.data = torch.zeros(1)
    elif how == "frozen":
        module._parameters[str(i)].requires_grad_(False)  # type: ignore[union-attr]
    else:
        module._parameters[str(i)] = None
    with pytest.raises(ModelError, match="moved, replaced or frozen"):
        stamp.check()
    with pytest.raises(ModelError):  # noqa: PT012
        for _ in range(stamp.calls):
            stamp.look()


def test_values_and_gradients_may_change() -> None:
    module = module_of(40)
    stamp = TensorStamp(module, "it")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
            parameter.grad = torch.ones(1)
    for _ in range(2 * stamp.calls):
        stamp.look()
    stamp.check()


def test_a_module_without_tensors_has_nothing_to_look_at() -> None:
    stamp = TensorStamp(nn.ReLU(), "it")
    stamp.look()
    stamp.check()
    assert stamp.calls == 0


@pytest.mark.parametrize("place", ["0", "1", "1.0", "1.0.weight"])
def test_modules_that_are_replaced(place: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    stamp = TensorStamp(model, "it")
    path, _, name = place.rpartition(".")
    owner = model.get_submodule(path)
    setattr(owner, name, nn.Parameter(torch.ones(2, 2)) if name == "weight" else nn.Linear(2, 2))
    with pytest.raises(ModelError, match="one of its modules is another"):
        stamp.look()
