"""Module, inputs -> TimedRun: a module's part of training steps in a row, on copies of its parameters, to be timed.

A step forgets the gradients of the last one, and adds up new ones in ``grad``; both take time for each parameter, and
stand in the times of the part that has it.
"""

from __future__ import annotations

import torch

from .dry_run import DryRun

__all__ = ["TimedRun"]


class TimedRun(DryRun):
    """A dry run as a training step has it."""

    def forward(self) -> list[torch.Tensor]:
        """Forget gradients, and give the outputs through which one can flow."""
        for leaf in self.leaves:
            leaf.grad = None
        return super().forward()

    def backward(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """Add gradients to the copies."""
        if outputs and self.leaves:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        return ()
