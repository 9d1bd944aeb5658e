"""A function cut in two, differentiated piece by piece, has the gradients of the whole."""

import dataclasses

import torch

from pararealize.distributed.autograd_cuts import add_gradients, as_leaf, differentiable_tensors, differentiate


@dataclasses.dataclass
class Pair:
    """A value."""

    first: torch.Tensor
    second: torch.Tensor


def test_graphs_end_at_tensors_of_dataclasses_too() -> None:
    weight = torch.ones(2, requires_grad=True)
    end = Pair(weight * 2, torch.arange(2))
    leaf = as_leaf(end)
    (tensor,) = differentiable_tensors(leaf)
    assert tensor is leaf.first
    assert tensor.is_leaf
    assert differentiable_tensors(end) == [end.first]


def test_two_pieces_have_the_gradients_of_the_whole() -> None:
    x, weight = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64, requires_grad=True)
    whole = {"a": (x * weight).tanh(), "b": (weight * 2, torch.arange(3), "text")}
    (whole["a"].sum() + (whole["b"][0] ** 2).sum()).backward()
    expected, weight.grad = weight.grad, None

    end = {"a": (x * weight).tanh(), "b": (weight * 2, torch.arange(3), "text")}
    leaf = as_leaf(end)
    assert leaf["b"][2] == "text"
    assert len(differentiable_tensors(leaf)) == 2
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in differentiable_tensors(leaf))
    assert not leaf["b"][1].requires_grad
    leaf["a"].sum().backward()
    first, second = differentiable_tensors(leaf)
    assert weight.grad is None  # the graph ends at the leaf
    add_gradients([first, second], [torch.zeros(3, dtype=torch.float64), 2 * second.detach()])  # by message
    pairs = zip(differentiable_tensors(end), differentiable_tensors(leaf), strict=True)
    differentiate((tensor, source.grad) for tensor, source in pairs)
    assert torch.allclose(weight.grad, expected)


def test_what_has_no_graph_or_no_gradient_is_passed_over() -> None:
    weight = torch.ones(2, requires_grad=True)
    differentiate([(torch.ones(2), torch.ones(2)), (weight * 3, None)])
    assert weight.grad is None
    differentiate([(weight * 3, torch.ones(2)), (torch.ones(2), None)])
    assert weight.grad.tolist() == [3, 3]
