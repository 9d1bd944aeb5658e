"""A plan, a network -> every fault of the one as a plan for the other: blocks, spaces, recipes, kinds, parameters.

A plan may be for other sizes of the example and another element type than the network was recorded with: then its
spaces are compared with its own rows alone, and adapters and coarse blocks are fitted to the network's later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pararealize.analysis.blocks import BlockChain
from pararealize.argument_types import typed_arguments
from pararealize.coarse.adapter import planned_parameters, planned_recipe
from pararealize.coarse.coarse_block import coarse_parameters
from pararealize.coarse.kinds import KIND_TABLE, KINDS
from pararealize.coarse.spec import AdapterPlan, CoarsePlan
from pararealize.errors import PlanError
from pararealize.plan.consistency import cut_faults
from pararealize.plan.fingerprints import fingerprint
from pararealize.plan.plan import MOST_FAULTS, Plan
from pararealize.plan.spec import SegmentPlan
from pararealize.table import quantity, shortened

from .arguments import check_sides, whole_number

__all__ = ["argument_faults", "check_plan"]


def argument_faults(plan: Plan, asked: Mapping[str, Any]) -> list[str]:
    """What is asked for and contradicts a plan that is given too.

    Args:
        plan: made before.
        asked: arguments of :func:`pararealize.pararealize` by their names; ``None`` where one was left out.
    """
    starts = [segment.first_block for segment in plan.segments]
    faults = []
    for name, value in asked.items():
        if value is None:
            continue
        shown = shortened(repr(value), 200)
        if name == "n":
            if whole_number(value) != plan.n:
                faults.append(f"n is {shown} and the plan is for {plan.n}")
        elif name in ("windows", "sequential"):
            if not _has_windows(plan, name, value):
                faults.append(f"{name} is {shown}, and the plan has other windows: {_windows_in_words(plan)}")
        elif name == "transfer":
            faults.append(f"transfer is {shown}, and the plan has its cuts already")
        elif name == "cuts" and not isinstance(value, str):
            if cut_faults(tuple(value), plan.segments):
                faults.append(f"cuts are {shown}, and the plan's segments begin at {shortened(', '.join(starts), 200)}")
        elif name == "coarse" and callable(value) and plan.coarse not in (*KINDS, "auto"):
            continue  # which callable a plan was made with, it does not know
        elif value != (here := plan.unit if name == "cost" else getattr(plan, name)):
            faults.append(f"{name} is {shown}, and the plan says {shortened(repr(here), 200)}")
    return [f"{fault}; pass one of them" for fault in faults]


def _has_windows(plan: Plan, name: str, value: Any) -> bool:
    """Whether a plan has the windows, or the sequential blocks, that are asked for."""
    windows = plan.windows
    if isinstance(value, str) and value == "auto":  # which any plan's may be
        return True
    if name == "windows":
        if not isinstance(value, str) and isinstance(value, Collection):
            return set(value) <= {window.segments[0].first_block for window in windows}
        return whole_number(value) in (len(windows), sum(not window.sequential for window in windows))
    if not isinstance(value, str) and isinstance(value, Collection):
        ends = {name for window in windows if window.sequential for name in _ends(window.segments[0])}
        return set(value) <= ends or plan.n == 1
    front = 0
    for window in windows:
        if not window.sequential:
            break
        front = window.last + 1
    return (whole_number(value) or 0) <= front


def _ends(segment: SegmentPlan) -> tuple[str, str]:
    return segment.first_block, segment.last_block


def _windows_in_words(plan: Plan) -> str:
    words = [
        f"{window.segments[0].first_block} to {window.segments[-1].last_block} ({quantity(window.n, 'segment')})"
        for window in plan.windows
    ]
    return shortened(", ".join(words), 200)


@typed_arguments(PlanError)
def check_plan(chain: BlockChain, plan: Plan) -> None:
    """Make sure that a plan is for a network, and that what it says of itself is so.

    Raises:
        PlanError: it is for another network, or was changed since it was made; names every fault.
    """
    faults = plan.contradictions()
    if not faults:
        plan.check(chain)
        check_sides(chain, plan)
        faults = [*_adapters(chain, plan), *_coarse_blocks(chain, plan)]
    if faults:
        raise PlanError(
            "this plan is not as it was made: " + "; ".join(faults[:MOST_FAULTS]) + "; leave plan= out to make one anew"
        )


def _adapters(chain: BlockChain, plan: Plan) -> Iterator[str]:
    """What adapters read, where it is not what the network gives them, and their recipes and parameters."""
    if any(row.source == "input" for row in plan.adapters) and chain.source is None:
        yield "its adapters read the input, which is not one floating-point tensor here"
        return
    exact = fingerprint(chain) == plan.fingerprint
    for first, row in ((window.first, row) for window in plan.windows for row in window.adapters):
        from_input = row.source == "input" and chain.source is not None
        origin = chain.source if from_input and chain.source is not None else chain.blocks[first].x
        if row.x != origin if exact else row.x.channels != origin.channels:
            yield f"{row.name} reads {row.x.description}, and the {row.source} is {origin.description}"
            continue
        yield from _adapter(row)


def _adapter(row: AdapterPlan) -> Iterator[str]:
    recipe = planned_recipe(row)
    if row.recipe != recipe:
        yield f"{row.name} from {row.x} to {row.y} is {recipe!r}, not {shortened(row.recipe, 200)!r}"
    parameters = planned_parameters(row)
    if row.parameters != parameters:
        yield f"{row.name} has {parameters} parameters, not {row.parameters}"


def _coarse_blocks(chain: BlockChain, plan: Plan) -> Iterator[str]:
    """Units, kernels and parameters that are not those of the kind."""
    exact = fingerprint(chain) == plan.fingerprint
    followers = [segment for segment in plan.segments if segment.j > 1]
    for row, segment in zip(plan.coarse_blocks, followers, strict=True):
        kind, parameters = KIND_TABLE.get(row.kind), 0
        if kind is not None and kind.convolves is not None and kind.convolves(row.y, chain) != (row.kernel > 0):
            yield f"{row.name} has a convolution {row.kernel} wide, and on {row.y} a {row.kind!r} block has " + (
                "none" if row.kernel else "one"
            )
            continue
        if kind is not None and kind.build is not None:
            parameters = coarse_parameters(row.kind, row.x, row.y, row.units, row.kernel, row.causal)
        elif kind is not None and kind.blocks is not None and kind.copies:
            blocks = chain.blocks[segment.first : segment.last + 1]
            if row.units > len(chain.blocks):
                yield f"{row.name} has copies of {row.units} blocks, and the network has {len(chain.blocks)}"
                continue
            if not exact:  # which blocks keep their space, and are copied, may depend on sizes
                continue
            parameters = sum(blocks[i].parameters for i in kind.blocks(blocks, row.units))
        if row.parameters != parameters:
            yield f"{row.name}, {_units(row)}, has {parameters} parameters, not {row.parameters}"


def _units(row: CoarsePlan) -> str:
    return f"{row.kind!r} of {row.units} units" if row.units else f"{row.kind!r}"
