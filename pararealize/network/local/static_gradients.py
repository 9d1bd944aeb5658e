"""Parameters, the memory that a graph writes their gradients to -> ``.grad`` is that memory, at a cost that stays.

A graph that leaves gradients where they are saves autograd's hand-over, some microseconds of the host for each
parameter. But users set ``.grad`` to ``None``, or to tensors of their own. So each look compares a fixed number: some
spread evenly, which sees at once what ``zero_grad()`` does to all, and the next ones of all in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .tensor_stamp import LOOKS

__all__ = ["StaticGradients"]


class StaticGradients:
    """Parameters with the memory of their gradients.

    Args:
        pairs: each parameter with the tensor that graphs write to.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        self.pairs = list(pairs)
        count = len(self.pairs)
        self._spread = [self.pairs[i * (count - 1) // LOOKS] for i in range(LOOKS + 1)] if count else []
        self._next = 0

    def attach(self, *, keep: bool) -> bool:
        """See to it that ``.grad`` is the graph's memory; whether anything had to be done.

        Args:
            keep: whether what stands in ``.grad`` now, or zero where nothing does, is to be added to.
        """
        start, end = self._next, self._next + LOOKS
        self._next = end if end < len(self.pairs) else 0
        if all(p.grad is static for p, static in (*self._spread, *self.pairs[start:end])):
            return False
        apart = [(p, p.grad, static) for p, static in self.pairs if p.grad is not static]
        if keep:
            with torch.no_grad():
                if empty := [static for _, gradient, static in apart if gradient is None]:
                    torch._foreach_zero_(empty)
                for _, gradient, static in apart:
                    if gradient is not None:
                        static.copy_(gradient)
        for parameter, _, static in apart:
            parameter.grad = static
        return True

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add to the memory of all, in a few kernels."""
        if self.pairs:
            torch._foreach_add_([static for _, static in self.pairs], list(gradients))

    def release(self) -> None:
        """Let go of the memory: gradients are copies of it from now on."""
        for parameter, static in self.pairs:
            if parameter.grad is static:
                parameter.grad = static.clone()
        self.pairs, self._spread, self._next = [], [], 0
