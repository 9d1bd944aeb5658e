"""Example inputs become plain dense tensors, or are refused by what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pararealize.errors import ExampleError
from pararealize.tracing.input_checks import check_names, plain_tensor

CPU = torch.device("cpu")


class Kind(Tensor):
    """A class of tensors with no meaning of its own."""


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x.as_subclass(Kind), torch.nn.Parameter])
def test_plain_tensors_are_the_same_values_as_objects_of_their_own(change: object) -> None:
    given = change(torch.randn(3, 4))  # type: ignore[operator]
    tensor = plain_tensor(given, CPU)
    assert type(tensor) is Tensor
    assert tensor is not given
    assert not tensor.requires_grad
    assert torch.equal(tensor, given.detach().as_subclass(Tensor))


def test_an_inference_tensor_becomes_an_ordinary_one() -> None:
    with torch.inference_mode():
        given = torch.randn(3)
    assert not plain_tensor(given, CPU).is_inference()


def test_a_meta_tensor_is_one_for_a_model_on_meta_alone() -> None:
    given = torch.empty(3, device="meta")
    assert plain_tensor(given, torch.device("meta")).is_meta
    with pytest.raises(ExampleError, match="meta device for a model on cpu"):
        plain_tensor(given, CPU)


def test_within_vmap_no_tensor_is_plain() -> None:
    with pytest.raises(ExampleError, match=r"torch\.func"):
        torch.vmap(lambda x: plain_tensor(x, CPU))(torch.randn(2, 3))


def test_names_are_ones_that_a_signature_can_have() -> None:
    check_names(["x", "input", "type"])
    with pytest.raises(ExampleError, match=r"'class', 'a b'.*rename them"):
        check_names(["x", "class", "a b"])
