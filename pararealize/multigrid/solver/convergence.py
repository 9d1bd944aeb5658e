"""Steps of training -> how far the multigrid solves of each had converged: residual norms, forward and adjoint."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

__all__ = ["Convergence", "StepNorms"]

LENGTH = 1000  # steps of training, beyond which the oldest norms are dropped


@dataclasses.dataclass(slots=True, kw_only=True)
class StepNorms:
    """The residual norms of one step.

    Attributes:
        forward: norms before each correction, and after the last one, from the last sweep.
        backward: those of the adjoint solve; empty where there was none.
        forward_size: the norm of all values at the C-points, ``sqrt(Σ_j ‖U_j‖²)``, which residuals are measured by.
        backward_size: the same norm of the adjoint solve's values.
    """

    forward: list[float] = dataclasses.field(default_factory=list)
    backward: list[float] = dataclasses.field(default_factory=list)
    forward_size: float = 0.0
    backward_size: float = 0.0

    @property
    def relative(self) -> float:
        """The forward solve's last residual norm in terms of its values' norm."""
        return self.forward[-1] / self.forward_size if self.forward_size else self.forward[-1]

    def __str__(self) -> str:
        words = [f"forward {_row(self.forward)}"] + ([f"adjoint {_row(self.backward)}"] if self.backward else [])
        return ", ".join(words)


class Convergence(collections.deque[StepNorms]):
    """The last thousand steps, the newest last; exact steps leave no entry."""

    def __init__(self, steps: Iterable[StepNorms] = (), maxlen: int | None = LENGTH) -> None:
        super().__init__(steps, maxlen)  # with the arguments of a deque, which copies are made by

    def __str__(self) -> str:
        first = max(0, len(self) - 5)
        return "\n".join([f"{len(self)} steps", *(f"  {self[i]}" for i in range(first, len(self)))])


def _row(norms: list[float]) -> str:
    return " → ".join(f"{value:.3g}" for value in norms)
