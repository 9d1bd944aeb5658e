"""The rows of a plan for the network's own parts: stem, segments, head. The others are in ``coarse/spec.py``."""

from pydantic.dataclasses import dataclass

from pararealize.analysis.space import Space
from pararealize.argument_types import typed_fields
from pararealize.coarse.spec import STRICT, Count, Number, RowCost, Text
from pararealize.errors import PlanError

__all__ = ["PartPlan", "SegmentPlan"]


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PartPlan(RowCost):
    """The stem or the head: parameters and FLOPs per sample."""

    parameters: Count
    flops_forward: Count
    flops_backward: Count


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SegmentPlan(RowCost):
    """g^j, j from 1: blocks ``first`` to ``last`` (0-based, inclusive), from X_{j-1} (``x``) to X_j (``y``).

    FLOPs are per sample.
    """

    j: Number
    first: Count
    last: Count
    first_block: Text
    last_block: Text
    blocks: Count
    x: Space
    y: Space
    parameters: Count
    flops_forward: Count
    flops_backward: Count
    device: Text
