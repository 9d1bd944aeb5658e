"""Gradients of any element types -> their norm, to more digits than they have themselves.

``torch.nn.utils.get_total_norm`` rounds the norm of each tensor to the tensor's own type, bfloat16 to three digits, and
so what it gives depends on how the gradients are shared among ranks. Here the norm of each tensor is taken in float32
at least, and all of them are put together in float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pararealize.errors import DistributedError

__all__ = ["gradient_norm"]

_HALVES = (torch.float16, torch.bfloat16)


def gradient_norm(gradients: Iterable[torch.Tensor], order: float = 2.0) -> torch.Tensor:
    """The norm of all gradients together, as one number in float64 on the first one's device.

    Args:
        gradients: dense or sparse; zero where there are none.
        order: of the norm, a number above 0 or infinity.

    Raises:
        DistributedError: it is another order, whose parts do not add up over ranks.

    Example:
        >>> import torch
        >>> from pararealize.distributed.gradient_norms import gradient_norm
        >>> round(gradient_norm([torch.ones(300, dtype=torch.bfloat16)] * 3).item(), 4)
        30.0
    """
    if not order > 0:
        raise DistributedError(f"the order of the norm is {order}; pass a number above 0, such as 2.0, or math.inf")
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for gradient in gradients:
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        groups.setdefault((values.device, values.dtype), []).append(values)
    norms: list[torch.Tensor] = []
    for (_, dtype), tensors in groups.items():
        norms += torch._foreach_norm(tensors, order, dtype=torch.float32 if dtype in _HALVES else None)
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    together: torch.Tensor = torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms])
    return together.norm(order)  # type: ignore[no-any-return]
