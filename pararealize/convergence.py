"""Steps of training -> how far each multigrid solve had converged: residual norms, forward and adjoint."""

from __future__ import annotations

import collections
import dataclasses

__all__ = ["Convergence", "StepNorms"]

KEPT = 1000  # steps


@dataclasses.dataclass(slots=True, kw_only=True)
class StepNorms:
    """The residual norms of one step.

    Attributes:
        forward: before each correction, and after the last one, as the last sweep found it.
        backward: the same of the adjoint; empty where there was none.
    """

    forward: list[float]
    backward: list[float] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        words = [f"forward {_row(self.forward)}"] + ([f"adjoint {_row(self.backward)}"] if self.backward else [])
        return ", ".join(words)


class Convergence(collections.deque[StepNorms]):
    """The last thousand steps, the newest last; exact steps leave no entry."""

    def __init__(self) -> None:
        super().__init__(maxlen=KEPT)

    def __str__(self) -> str:
        first = max(0, len(self) - 5)
        return "\n".join([f"{len(self)} steps", *(f"  {self[i]}" for i in range(first, len(self)))])


def _row(norms: list[float]) -> str:
    return " → ".join(f"{value:.3g}" for value in norms)
