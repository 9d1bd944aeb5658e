"""Names of residual blocks -> Restacking: which make a step, which were left and why, as plain data that prints."""

from __future__ import annotations

import dataclasses
from typing import Any

from pararealize.analysis.residual import NotResidual
from pararealize.table import quantity

__all__ = ["Group", "Restacking"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The names of the blocks of one step, and whether a ReLU follows it."""

    blocks: tuple[str, ...]
    post: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Restacking:
    """What was rewired and what was not.

    Attributes:
        model: the model's class.
        scheme: the tableau's name.
        stages: number of f's in a step.
        order: the tableau's order.
        h: the size of a step, or where learnable sizes start.
        adaptive: what learnable steps scale: ``"all"``, ``"output"``, or ``None`` where h is fixed.
        per: whether each residual or each block is an f.
        groups: the steps, in order.
        left: every other residual block or sum of activations, and why it is left as it was.
    """

    model: str
    scheme: str
    stages: int
    order: int
    h: float
    adaptive: str | None
    per: str
    groups: tuple[Group, ...]
    left: tuple[NotResidual, ...]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        step = f"h = {self.h:g}" + ("" if self.adaptive is None else f", learnable ({self.adaptive})")
        steps = quantity(len(self.groups), "step")
        blocks = self.stages * len(self.groups)
        scheme = f"{self.scheme} ({quantity(self.stages, 'stage')}, order {self.order})"
        lines = [f"{self.model} as {scheme}, {step}: {steps} of {blocks} residual blocks"]
        for g, group in enumerate(self.groups, start=1):
            ends = group.blocks[0] if len(group.blocks) == 1 else f"{group.blocks[0]} – {group.blocks[-1]}"
            lines.append(f"  step {g}: {ends}{', then ReLU' if group.post else ''}")
        reasons: dict[str, list[str]] = {}
        for other in self.left:
            reasons.setdefault(other.reason, []).append(other.name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            lines.append(f"  left {', '.join(names[:4])}{more}: {reason}")
        return "\n".join(lines)
