"""Tensors that are no parameters and no buffers have names, and get values by them."""

import pytest
import torch
from torch import Tensor, nn

from pararealize import load_original
from pararealize.saving import save_model
from pararealize.saving.plain_attributes import give_plain_tensors, named_plain_tensors


class Scaled(nn.Module):
    """Holds tensors in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.again = self.linear.weight  # registered: its value is the state dict's
        self.scale, self.others, self.table = torch.rand(4), [torch.rand(4), (torch.rand(4), 3)], {"a": torch.rand(4)}

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale + self.others[0] * self.others[1][0] + self.table["a"]


def test_every_tensor_has_a_name_and_gets_its_value() -> None:
    model, other, x = nn.Sequential(Scaled(), Scaled()), nn.Sequential(Scaled(), Scaled()), torch.randn(2, 4)
    other.load_state_dict(model.state_dict())
    plain, kept = named_plain_tensors(model), other[0].scale
    assert list(plain)[:4] == ["0.scale", "0.others.0", "0.others.1", "0.table.0"]
    assert len(plain) == 8
    assert not torch.equal(other(x), model(x))
    give_plain_tensors(other, plain)
    assert torch.equal(other(x), model(x))
    assert other[0].scale is not kept, "an attribute may be a tensor that others have, too"


def test_a_saved_model_has_them(tmp_path) -> None:
    model, x = Scaled().eval(), torch.randn(2, 4)
    folder = save_model(model, tmp_path / "model")
    assert torch.equal(load_original(folder, Scaled())(x), model(x))


class Holder(nn.Module):
    """Holds any one thing."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.linear, self.value = nn.Linear(4, 4), value


def test_a_tensor_that_several_modules_hold_is_one_in_the_file_and_afterwards(tmp_path) -> None:
    table = torch.rand(4, requires_grad=True)
    model = nn.Sequential(*(Holder(table) for _ in range(3)))
    assert list(named_plain_tensors(model)) == ["0.value"]
    folder = save_model(model, tmp_path / "model")
    other = torch.zeros(4, requires_grad=True)
    loaded = load_original(folder, nn.Sequential(*(Holder(other) for _ in range(3))))
    assert torch.equal(loaded[0].value, table)
    assert loaded[0].value is loaded[1].value is loaded[2].value
    assert loaded[0].value.requires_grad
    assert not other.any()


@pytest.mark.parametrize("value", [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128), "text", None])
def test_what_no_file_holds_is_left_out(value, tmp_path) -> None:
    assert named_plain_tensors(Holder(value)) == {}
    assert save_model(Holder(value), tmp_path / "model").exists()


def test_a_model_on_the_meta_device_gets_them(tmp_path) -> None:
    model, x = Scaled().eval(), torch.randn(2, 4)
    model.others, model.table = [torch.ones(4), (torch.ones(4), 3)], {"a": torch.ones(4)}
    folder = save_model(model, tmp_path / "model")
    with torch.device("meta"):
        empty = Scaled()
    empty.others, empty.table = [torch.ones(4), (torch.ones(4), 3)], {"a": torch.ones(4)}
    assert torch.equal(load_original(folder, empty)(x), model(x))
