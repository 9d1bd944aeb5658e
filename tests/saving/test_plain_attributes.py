"""Tensors that are no parameters and no buffers have names, and get values by them."""

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
