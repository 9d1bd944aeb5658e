"""What a tensor in a message looks like."""

import pytest
import torch

from pararealize.distributed.p2p import Kind, _flat

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
    kind = Kind.of(tensor)
    packed, arrived = kind.packed(tensor), kind.empty(torch.device("cpu"))
    assert _flat(packed).is_contiguous()
    _flat(arrived).copy_(_flat(packed))
    assert torch.equal(arrived, tensor)
    assert arrived.dtype is tensor.dtype
    assert arrived.stride() == packed.stride()


def test_layouts_that_fill_memory_are_kept() -> None:
    for name in ("contiguous", "channels last"):
        kind = Kind.of(TENSORS[name])
        assert kind.stride == TENSORS[name].stride()
        assert kind.packed(TENSORS[name]) is TENSORS[name]
    assert str(Kind.of(TENSORS["bfloat16"])) == "(3,) bfloat16"
