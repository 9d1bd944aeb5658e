"""Memory for a model on the meta device: what was one tensor stays one, and what no file has is told before."""

import pytest
import torch
from torch import nn

from pararealize.errors import CheckpointError
from pararealize.saving.meta_model import give_memory


class Tied(nn.Module):
    """Two names of one weight, and an attribute that is a buffer's second name."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.first_scale = self.scale


def test_ties_stay():
    with torch.device("meta"):
        model = Tied()
    model.embed.weight.requires_grad_(False)
    give_memory(model, {"embed.weight", "scale"})
    assert model.head.weight is model.embed.weight
    assert not model.head.weight.requires_grad
    assert model.first_scale is model.scale
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_what_no_file_has_is_told_and_nothing_changed():
    with torch.device("meta"):
        model = Tied()
        model.head.masks = [torch.ones(2)]
    with pytest.raises(
        CheckpointError, match=r"no values for scale, head.masks, .*; build the model off the meta device"
    ):
        give_memory(model, {"head.weight"})
    assert all(parameter.is_meta for parameter in model.parameters())
