"""A plan, a network -> every fault of the one as a plan for the other: blocks, spaces, recipes, kinds, parameters.

A plan may be for other sizes of the example and another element type than the network was recorded with: then its
spaces are compared with its own rows alone, and adapters and coarse blocks are fitted to the network's later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
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
from pararealize.table import quantity, shortened

from .arguments import block_places, check_sides, whole_number
from .window_arguments import sequential_blocks

__all__ = ["argument_faults", "check_plan", "window_faults"]


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
    """Whether a plan may have been made with these windows, or sequential blocks; names of the latter are known later.

    Which of its windows of one segment are sequential blocks, and which are short, a plan does not know.
    """
    if isinstance(value, str) and value == "auto":  # which any plan's may be
        return True
    named = not isinstance(value, str) and isinstance(value, Collection)
    if name == "sequential":
        return named or _keeps(plan, range(whole_number(value) or 0))
    if not named:
        count, several = whole_number(value) or 0, [window for window in plan.windows if not window.sequential]
        apart = all(b.m - a.m > 1 for a, b in pairwise(several))  # every run of blocks between sequential ones has one
        return (1 if apart else len(several)) <= count <= len(plan.windows)
    open_starts = set[str]()  # where windows begin without being named: at first, and beside sequential ones
    behind = True
    for window in plan.windows:
        if behind or window.sequential:
            open_starts.add(window.segments[0].first_block)
        behind = window.sequential
    starts = {window.segments[0].first_block for window in plan.windows}
    return starts - open_starts <= set(value) <= starts


def _keeps(plan: Plan, blocks: Collection[int]) -> bool:
    """Whether all these blocks are in windows of one segment, and of longer such windows none other."""
    single = [range(window.first, window.last + 1) for window in plan.windows if window.sequential]
    if not set(blocks) <= {i for window in single for i in window}:
        return plan.n == 1
    longer = [window for window in single if len(window) > 1] if plan.n > 1 and plan.cuts in ("cost", "paper") else []
    return all(i in blocks for window in longer for i in window)


def window_faults(chain: BlockChain, plan: Plan, windows: Any, sequential: Any) -> list[str]:
    """What names of sequential blocks, alone or beside names of windows, contradict in a plan that is given too.

    Args:
        chain: the network's blocks.
        plan: made before, and checked.
        windows: as :func:`pararealize.pararealize` takes it; alone it is looked at by :func:`argument_faults`.
        sequential: likewise; so is a number.

    Raises:
        CutError: a name is no block's.
    """
    if sequential is None or isinstance(sequential, str):
        return []
    blocks = sequential_blocks(chain, sequential)
    fits, shown = _keeps(plan, blocks), f"sequential is {shortened(repr(sequential), 200)}"
    if fits and not isinstance(windows, str) and isinstance(windows, Collection):
        begins = {0, *block_places(chain, list(windows), "windows")}
        begins |= {i for i in range(1, len(chain.blocks)) if (i in blocks) != (i - 1 in blocks)}
        fits = begins == {window.first for window in plan.windows}
        shown = f"windows is {shortened(repr(windows), 200)}, {shown}"
    return [] if fits else [f"{shown}, and the plan has other windows: {_windows_in_words(plan)}; pass one of them"]


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
