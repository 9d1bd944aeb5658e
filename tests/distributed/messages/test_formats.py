"""What a tensor in a message looks like."""

import dataclasses
import pickle

import pytest
import torch

from pararealize.distributed.messages.formats import TensorFormat, ValueFormat, in_memory_order
from pararealize.tracing.containers import tensors_of

TENSORS = {
    "contiguous": torch.randn(2, 3, 4, 5),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": torch.randn(4, 3).T,
    "expanded": torch.randn(1, 3).expand(4, 3),
    "a view": torch.randn(6, 4)[2:4],
    "one number": torch.tensor(2.5),
    "whole numbers": torch.arange(6).view(2, 3),
    "bfloat16": torch.randn(3).bfloat16(),
    "nothing": torch.randn(0, 3),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_flat_copy_makes_the_same_tensor(name: str) -> None:
    tensor = TENSORS[name]
    tensor_format = TensorFormat.of(tensor)
    packed, arrived = tensor_format.packed(tensor), tensor_format.empty(torch.device("cpu"))
    assert in_memory_order(packed).is_contiguous()
    in_memory_order(arrived).copy_(in_memory_order(packed))
    assert torch.equal(arrived, tensor)
    assert arrived.dtype is tensor.dtype
    assert arrived.stride() == packed.stride()


@dataclasses.dataclass(frozen=True)
class Pair:
    """A value, or what a leaf of one may be."""

    first: object
    second: object


def test_a_value_of_any_containers_comes_back_from_its_format() -> None:
    """Tensors are sent one by one wherever they are; none of their numbers is part of the format."""
    x, y = torch.randn(300, 2), torch.arange(3)
    value = {"a": Pair(x, (None, Pair("text", y))), "b": [1, TensorFormat.of(x)]}
    value_format = pickle.loads(pickle.dumps(ValueFormat.of(value)))
    assert len(pickle.dumps(value_format)) < 1000
    assert value_format.tensors == [TensorFormat.of(x), TensorFormat.of(y)]
    assert len(value_format.gradients) == 1
    assert [tensor.shape for tensor in tensors_of(value)] == [x.shape, y.shape]
    back = value_format.filled(tensors_of(value))
    assert back["a"].first is x
    assert back["a"].second[1] == Pair("text", y)
    assert back["b"] == value["b"]


def test_layouts_that_fill_memory_are_kept() -> None:
    for name in ("contiguous", "channels last"):
        tensor_format = TensorFormat.of(TENSORS[name])
        assert tensor_format.stride == TENSORS[name].stride()
        assert tensor_format.packed(TENSORS[name]) is TENSORS[name]
    assert str(TensorFormat.of(TENSORS["bfloat16"])) == "(3,) bfloat16"
