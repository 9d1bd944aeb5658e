"""A network -> what of its plan the weights of adapters and coarse blocks depend on, as plain data for files.

Between two plans, adapters and coarse blocks of the same names and shapes stand for other segments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from pararealize.plan.plan import Plan

__all__ = ["ADDED", "plan_facts", "plan_of", "without_added"]

ADDED = ("adapters", "coarse")  # under which the state dict has what conversion added to the original


def plan_of(net: nn.Module) -> Plan | None:
    """The plan of a parareal network, or of what runs one."""
    plan = getattr(net, "plan", None) or getattr(getattr(net, "net", None), "plan", None)
    return plan if isinstance(plan, Plan) else None


def plan_facts(net: nn.Module) -> dict[str, Any] | None:
    """What two networks of one model have to agree on to exchange adapters and coarse blocks; ``None`` for an original.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> plan_facts(pararealize(resnet20(), n=2, coarse="linear"))
        {'n': 2, 'segments begin at': ['stage1.0', 'stage2.1'], 'coarse blocks': ['linear'], 'adapters read': 'input'}
    """
    if (plan := plan_of(net)) is None:
        return None
    return {
        "n": plan.n,
        "segments begin at": [segment.first_block for segment in plan.segments],
        "coarse blocks": [row.kind for row in plan.coarse_blocks],
        "adapters read": plan.source,
    }


def without_added(names: Iterable[str]) -> list[str]:
    """The names of a state dict that are the original's."""
    return [name for name in names if name.split(".")[0] not in ADDED]
