"""Module, inputs -> TimedRun: a module's part of training steps in a row, on copies of its parameters, to be timed.

A step forgets the gradients of the last one, and adds up new ones in ``grad``; both take time for each parameter, and
stand in the times of the part that has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import _pytree as pytree

from .dry_run import DryRun

__all__ = ["TimedRun"]


class TimedRun(DryRun):
    """A dry run as a training step has it, within :meth:`in_place`."""

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the copies where the module's own tensors are, once for all runs: it would take longer than small ones.

        ``functional_call`` does the same around every call.
        """
        with _reparametrize_module(self.module, self.tensors, tie_weights=True):
            yield

    def forward(self) -> list[torch.Tensor]:
        """Forget gradients, and give the outputs through which one can flow."""
        for leaf in self.leaves:
            leaf.grad = None
        result = self.module(*self.copies)
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]

    def backward(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """Add gradients to the copies."""
        if outputs and self.leaves:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        return ()
