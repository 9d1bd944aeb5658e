"""What a user asks of a plan (n, cuts, source, devices) -> what it means for a network, or every fault at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from pararealize.analysis.blocks import BlockChain, why_no_more
from pararealize.analysis.bulk import bulk_of
from pararealize.analysis.causality import Sides, causal_axes
from pararealize.analysis.fields.dependency import dependencies
from pararealize.coarse.spec import AdapterPlan, CoarsePlan
from pararealize.errors import CutError, DeviceError, PararealizeError, PlanError, SourceError
from pararealize.plan.plan import Plan

__all__ = [
    "AdapterSource",
    "Faults",
    "adapter_source",
    "block_places",
    "check_count",
    "check_sides",
    "device_fault",
    "device_names",
    "named_starts",
    "whole_number",
]

T = TypeVar("T")
AdapterSource: TypeAlias = Literal["input", "stem"]


class Faults:
    """Errors of several checks, to be raised as one error of the first one's class."""

    def __init__(self) -> None:
        self.errors: list[PararealizeError] = []

    def collect(self, check: Callable[[], T]) -> T | None:
        """The value that a check returns; ``None``, and an error more, where it raises one."""
        try:
            return check()
        except PararealizeError as error:
            self.errors.append(error)
            return None

    def raise_all(self) -> None:
        """Raise the errors, if there are any."""
        if self.errors:
            raise type(self.errors[0])("\n".join(map(str, self.errors))) from self.errors[0]


def whole_number(n: Any) -> int | None:
    """A number of segments as Python's integer, where NumPy's or another's is one too; ``None`` where it is none."""
    return None if isinstance(n, bool) or not isinstance(n, Integral) else int(n)


def check_count(chain: BlockChain, n: int) -> None:
    """Raise a PlanError where a network cannot have n segments."""
    blocks = len(chain.blocks)
    number = whole_number(n)
    if number is None or not 1 <= number <= blocks:
        model = type(chain.capture.model).__name__
        why = ""
        if number is not None and number > blocks:
            bulk, passed = bulk_of(chain), chain.flow.passed_over()
            more = "" if passed and passed in bulk else why_no_more(chain.flow)
            why = f" ({'; '.join(filter(None, (bulk, more)))})"
        raise PlanError(
            f"n = {n!r} is out of range: {model} has {blocks} blocks{why}; pass an integer n from 1 to {blocks}"
        )


def adapter_source(chain: BlockChain, source: str | None, *, sequential: bool = False) -> AdapterSource:
    """What the adapters of the first window read.

    It is what was asked for, or the input where it is floating-point and of as many axes as most blocks' values: an
    adapter from images to tokens or vectors would average axes away which the stem cuts into patches, or unrolls.

    Args:
        chain: the network's blocks.
        source: as asked for, or ``None``.
        sequential: whether the first block runs as in the original, so that the first window has no adapters.
    """
    if source is None:
        if chain.source is None or sequential:
            return "stem"
        axes = len(chain.source.extent)
        alike = sum(len(block.x.extent) == axes for block in chain.blocks)
        return "input" if 2 * alike >= len(chain.blocks) else "stem"
    if source == "stem":
        return "stem"
    if source != "input":
        raise SourceError(f'source = {source!r} is unknown; pass "input" or "stem"')
    if sequential:
        raise SourceError(
            f'source = "input" and sequential contradict each other: block {chain.blocks[0].name} is sequential, and '
            'the adapters behind it read what it gives; pass source="stem", or leave one of them out'
        )
    if chain.source is None:
        raise SourceError(
            'source = "input" needs one floating-point input with a batch, and this model reads '
            f'{chain.capture.example}; pass source="stem"'
        )
    return "input"


def check_sides(chain: BlockChain, plan: Plan) -> None:
    """Raise a PlanError where a plan, made for a network of other masks, lets parts read what this one does not see."""
    if plan.n == 1:
        return
    reads = dependencies(chain)
    rows: list[tuple[str, AdapterPlan | CoarsePlan, Sides]] = []
    for window in plan.windows:
        parts = zip(window.adapters, window.coarse_blocks, window.segments[1:], strict=True)
        for adapter, coarse, segment in parts:
            seen = reads.of(window.first, segment.first, from_input=adapter.source == "input")
            rows.append((adapter.name, adapter, seen))
            if coarse.kind not in ("block", "exact"):
                rows.append((coarse.name, coarse, reads.of(segment.first, segment.last + 1)))
    faults = [
        f"{name} reads {causal_axes(row.causal) or 'both sides of every axis'}, and the network {causal_axes(sides)}"
        for name, row, sides in rows
        if sides and row.causal != sides
    ]
    if faults:
        raise PlanError(f"this plan shows what the network does not see: {'; '.join(faults)}; make the plan anew")


def device_names(chain: BlockChain, devices: Sequence[str | torch.device] | None, n: int) -> tuple[str, ...]:
    """The names of the devices, one for each segment of a window."""
    count = min(max(n, 1), len(chain.blocks)) if isinstance(n, int) else 1  # more are refused, however many
    if devices is None:
        home = next((parameter.device for parameter in chain.capture.model.parameters()), torch.device("cpu"))
        return (str(home),) * count
    if isinstance(devices, str | torch.device):
        devices = [devices]
    if not devices:
        raise DeviceError("devices is empty; pass at least one, or leave it out to stay where the model is")
    faults = [fault for device in dict.fromkeys(devices) if (fault := device_fault(device))]
    if faults:
        raise DeviceError("\n".join(faults))
    return tuple(str(torch.device(devices[j % len(devices)])) for j in range(count))


def device_fault(device: str | int | torch.device) -> str:
    """What is wrong with a device; nothing where it is there."""
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        return f"device {device!r} is unknown: {str(error).splitlines()[0]}"
    if parsed.type in ("cpu", "meta"):
        return ""
    module = getattr(torch, parsed.type, None)
    count = module.device_count() if module is not None and module.is_available() else 0
    if (parsed.index or 0) < count:
        return ""
    return f"device {str(parsed)!r} is not there: this machine has {count} of {parsed.type}; pass others, or fewer"


def named_starts(chain: BlockChain, cuts: str | Sequence[str]) -> tuple[int, ...] | None:
    """The blocks that cuts name, by number; ``None`` where cuts are found by a rule.

    Raises:
        CutError: there is no such rule, a name is no block's, or stands twice.
    """
    if isinstance(cuts, str):
        if cuts not in ("cost", "paper"):
            raise CutError(f'cuts = {cuts!r} is unknown; pass "cost", "paper", or a list of names of blocks')
        return None
    return tuple(sorted(block_places(chain, list(cuts), "cuts")))


def block_places(chain: BlockChain, names: Sequence[str], argument: str, *, ordered: bool = False) -> list[int]:
    """The numbers of blocks, by their names.

    Args:
        chain: the network's blocks.
        names: of blocks.
        argument: that they were given for.
        ordered: whether they have to stand in the order of the blocks.

    Raises:
        CutError: a name is no block's, stands twice, or is out of order; every fault at once.
    """
    blocks = [block.name for block in chain.blocks]
    place = {name: i for i, name in enumerate(blocks)}
    faults = []
    for name in dict.fromkeys(names):
        if name not in place:
            close = difflib.get_close_matches(str(name), blocks, n=3)
            hint = f"; close ones: {', '.join(close)}" if close else f"; blocks run from {blocks[0]} to {blocks[-1]}"
            faults.append(f"{argument}: {name!r} is not the name of a block{hint}")
        elif list(names).count(name) > 1:
            faults.append(f"{argument}: {name!r} stands more than once")
    places = [place[name] for name in names if name in place]
    if ordered and not faults and places != sorted(places):
        faults.append(f"{argument}: {', '.join(map(repr, names))} are not in the order of the network's blocks")
    if faults:
        raise CutError("\n".join(faults))
    return places
