"""The norm of gradients beside the same in float64, however they are divided among ranks."""

from __future__ import annotations

import math

import pytest
import torch

from pararealize.distributed.gradient_norms import gradient_norm
from pararealize.errors import DistributedError

ORDERS = (0.5, 1.0, 2.0, 3.0, math.inf)


def exact(gradients, order):
    flat = torch.cat([(g.to_dense() if g.is_sparse else g).double().flatten() for g in gradients])
    return torch.linalg.vector_norm(flat, order)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("order", ORDERS)
def test_parts_add_up_to_the_whole_in_every_element_type(dtype, order) -> None:
    """Rounded to bfloat16, tensor by tensor, the norms of three and of two ranks differed in the third digit."""
    torch.manual_seed(0)
    gradients = [torch.randn(100 + 37 * i).to(dtype) for i in range(7)]
    expected = exact(gradients, order)
    for ranks in (1, 2, 3):
        parts = torch.stack([gradient_norm(gradients[rank::ranks], order) for rank in range(ranks)])
        torch.testing.assert_close(torch.linalg.vector_norm(parts, order), expected, rtol=2e-6, atol=0)


def test_of_several_types_and_layouts_or_none() -> None:
    sparse = torch.tensor([0.0, 3.0, 0.0, 4.0]).to_sparse()
    gradients = [torch.ones(3, dtype=torch.float64), sparse, torch.full((2,), 2.0, dtype=torch.bfloat16)]
    torch.testing.assert_close(gradient_norm(gradients), exact(gradients, 2.0))
    assert gradient_norm([]) == 0
    assert gradient_norm([torch.tensor([1.0, math.nan])]).isnan()


@pytest.mark.parametrize("order", [0, -1.0, -math.inf, math.nan])
def test_orders_whose_parts_do_not_add_up_are_refused(order) -> None:
    with pytest.raises(DistributedError, match="pass a number above 0"):
        gradient_norm([torch.ones(2)], order)
