"""BlockChain, fields, Costs, n -> Plan: where to cut, which adapters and which coarse blocks. Plain data, no modules.

A plan prints as a table, survives JSON with a version and a schema, and knows which network it is for.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from pararealize.analysis.blocks import BlockChain
from pararealize.argument_types import typed_arguments, typed_fields
from pararealize.coarse.spec import STRICT, AdapterPlan, CoarsePlan, Count, Text
from pararealize.control_characters import visible
from pararealize.errors import PlanError
from pararealize.table import aligned, billions, count, shortened

from .consistency import cut_faults, kind_faults, row_faults
from .json_text import parse_json, read_json
from .spec import PartPlan, SegmentPlan

__all__ = ["VERSION", "PartPlan", "Plan", "SegmentPlan", "Totals", "fingerprint"]

VERSION = 1
MOST_FAULTS = 12  # that a message lists


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Parameters of the model itself, of all adapters, of all coarse blocks, and of everything."""

    original: int
    adapters: int
    coarse: int
    total: int


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Plan:
    """How a network becomes n segments with adapters and coarse blocks.

    Attributes:
        version: of this format.
        model: the class name of the model.
        fingerprint: of the model's chain of blocks; :meth:`check` compares it.
        n: the number of segments.
        coarse: the kind of coarse blocks that was asked for.
        cuts: ``"cost"``, ``"paper"``, or the names of the blocks at which segments begin.
        source: what adapters read.
        batch: the batch size of the example.
        unit: of every cost: ``"flops"``, work per sample, or ``"seconds"``, measured at that batch size.
        stem: the part before the first segment.
        stem_blocks: how many blocks of the chain are in it, because the user wanted them there.
        head: the part after the last.
        segments: g^1 to g^n.
        adapters: C^2 to C^n.
        coarse_blocks: F^1 to F^{n-1}.
        notes: what the user should know.
    """

    version: int = VERSION
    model: Text
    fingerprint: Text
    n: int
    coarse: Text
    cuts: Text | tuple[Text, ...]
    source: Literal["input", "stem"]
    batch: Count
    unit: Literal["flops", "seconds"]
    stem: PartPlan
    segments: tuple[SegmentPlan, ...]
    adapters: tuple[AdapterPlan, ...]
    coarse_blocks: tuple[CoarsePlan, ...]
    head: PartPlan
    notes: tuple[Text, ...] = ()
    stem_blocks: int = 0

    WIDTH: ClassVar[int] = 120

    def __post_init__(self) -> None:
        if faults := _inconsistencies(self):
            raise ValueError("; ".join(faults))

    # What follows from it -------------------------------------------------------------------------------------------

    @property
    def serial(self) -> float:
        """The cost of one step of the original network, one block after the other."""
        return self.stem.cost + sum(segment.cost for segment in self.segments) + self.head.cost

    @property
    def critical_path(self) -> float:
        """The cost of one step with a device for each segment.

        Forward, ``t_1 = s_1``, ``t_{j+1} = max(s_{j+1}, t_j) + c_j``, then the head; ``s_j`` is a segment with its
        adapter (and the stem, where it is what the adapter reads), ``c_j`` the coarse block F^j. Backward is the mirror
        image: the head, and the same recursion on the backward costs. Messages are free; see
        :func:`~pararealize.plan.simulation.simulate` for those that are not.
        """
        return self._path("cost_forward") + self._path("cost_backward")

    def _path(self, cost: Literal["cost_forward", "cost_backward"]) -> float:
        """The longest path in one direction."""
        stem: float = getattr(self.stem, cost)
        time, wait = stem + getattr(self.segments[0], cost), stem if self.source == "stem" else 0
        for segment, adapter, coarse in zip(self.segments[1:], self.adapters, self.coarse_blocks, strict=True):
            fine = wait + getattr(adapter, cost) + getattr(segment, cost)
            time = max(fine, time) + getattr(coarse, cost)
        return float(time + getattr(self.head, cost))

    @property
    def virtual_speedup(self) -> float:
        """``serial / critical_path``, what the plan predicts with a device for each segment and free messages."""
        return self.serial / self.critical_path if self.critical_path else 1.0

    @property
    def parameters(self) -> Totals:
        """Numbers of parameters."""
        original = self.stem.parameters + sum(row.parameters for row in self.segments) + self.head.parameters
        adapters = sum(row.parameters for row in self.adapters)
        coarse = sum(row.parameters for row in self.coarse_blocks)
        return Totals(original=original, adapters=adapters, coarse=coarse, total=original + adapters + coarse)

    @property
    def class_name(self) -> str:
        """What the class of the converted network is called: an identifier, whatever a file calls the model."""
        return f"Parareal{re.sub(r'[^A-Za-z0-9_]', '_', self.model)[:100]}"

    # Reading and writing --------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as JSON text; :meth:`from_json` gives an equal plan."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """The plan of a JSON text.

        Raises:
            PlanError: it is no JSON, of another version, incomplete, or contradicts itself; names every fault.
        """
        data = parse_json(text, "Plan.to_json()")
        if not isinstance(data, dict) or "version" not in data:
            raise PlanError('this is not a plan: it has no "version"; pass the text that Plan.to_json() wrote')
        if data["version"] != VERSION:
            raise PlanError(
                f"this plan has version {data['version']!r}, this release reads version {VERSION}; make the plan again "
                "with pararealize(model, n, ...).plan"
            )
        plan = read_json(_ADAPTER, text, "plan")
        if faults := plan.contradictions():
            raise PlanError("this plan cannot be read:\n" + "\n".join(faults[:MOST_FAULTS]))
        return plan

    def contradictions(self) -> list[str]:
        """What the rows say that cannot be, though they are as many as they should be; nothing of a plan that was made.

        :meth:`from_json` looks for it, and whoever applies a plan.
        """
        faults = row_faults(self.segments, self.adapters, self.coarse_blocks, self.source)
        return faults or kind_faults(self.coarse, self.coarse_blocks) + cut_faults(self.cuts, self.segments)

    @staticmethod
    def schema() -> dict[str, Any]:
        """The JSON schema of a plan."""
        return _ADAPTER.json_schema()

    @typed_arguments(PlanError)
    def check(self, chain: BlockChain) -> None:
        """Make sure that this plan was made for that network, at the sizes of its example or at others.

        Raises:
            PlanError: the network's blocks differ from those that the plan was made for.
        """
        actual = fingerprint(chain)
        misfits = self.misfits(chain, exact=actual == self.fingerprint)
        if not misfits and (actual == self.fingerprint or not self._at_sizes_of(chain)):
            return
        if actual == self.fingerprint:
            raise PlanError(
                f"this plan is not as it was made: its fingerprint {actual} is that of this network, and yet "
                + "; ".join(misfits[:MOST_FAULTS])
                + "; leave plan= out to make one for it"
            )
        count, planned = len(chain.blocks), sum(segment.blocks for segment in self.segments)
        alike = (
            ""
            if misfits
            else ", of the same sizes, with other operations or settings (or as another version of PyTorch prints them)"
        )
        raise PlanError(
            f"this plan is for another network: {self.model} with {planned} blocks from {self.segments[0].first_block} "
            f"to {self.segments[-1].last_block} (fingerprint {self.fingerprint}), not "
            f"{type(chain.capture.model).__name__} with {count} blocks from {chain.blocks[0].name} to "
            f"{chain.blocks[-1].name} (fingerprint {actual}){alike}; leave plan= out to make one for it"
        )

    def _at_sizes_of(self, chain: BlockChain) -> bool:
        """Whether every space of a network, which has the plan's blocks, is the plan's own."""
        x = chain.source if self.source == "input" and self.adapters else None
        return (x is None or x == self.adapters[0].x) and all(
            (chain.blocks[segment.first].x, chain.blocks[segment.last].y) == (segment.x, segment.y)
            for segment in self.segments
        )

    def misfits(self, chain: BlockChain, *, exact: bool = False) -> list[str]:
        """What is not as planned in a network that was recorded at other sizes: blocks, channels, parameters.

        Sizes of images and numbers of tokens may differ, and so may what blocks compute at other sizes; unless
        ``exact``, where the network was recorded at the plan's own.
        """
        blocks, planned = chain.blocks, sum(segment.blocks for segment in self.segments)
        if len(blocks) != planned or chain.stem_blocks != self.stem_blocks:
            counts = f"{len(blocks)} blocks behind {chain.stem_blocks}", f"{planned} behind {self.stem_blocks}"
            return [f"{counts[0]} in the stem, not {counts[1]}"]
        faults = []
        for segment in self.segments:
            first, last = blocks[segment.first], blocks[segment.last]
            here: list[tuple[str, Any, Any]] = [
                ("first block", first.name, segment.first_block),
                ("last block", last.name, segment.last_block),
                ("input", first.x.description, segment.x.description)
                if exact
                else ("input's channels", first.x.channels, segment.x.channels),
                ("output", last.y.description, segment.y.description)
                if exact
                else ("output's channels", last.y.channels, segment.y.channels),
                (
                    "parameters",
                    sum(block.parameters for block in blocks[segment.first : segment.last + 1]),
                    segment.parameters,
                ),
            ]
            faults += [f"segment {segment.j}'s {what}: {now}, not {then}" for what, now, then in here if now != then]
        ends = ("stem", chain.stem, self.stem), ("head", chain.head, self.head)
        for name, block, part in ends if exact else ():
            if block.parameters != part.parameters:
                faults.append(f"{name}'s parameters: {block.parameters}, not {part.parameters}")
        return faults

    def __str__(self) -> str:
        return plan_text(self)


_ADAPTER = TypeAdapter(Plan)


def _inconsistencies(plan: Plan) -> list[str]:
    """What a plan says about itself that cannot be."""
    counts = (len(plan.segments), len(plan.adapters) + 1, len(plan.coarse_blocks) + 1)
    if plan.n < 1 or set(counts) != {plan.n}:
        fault = f"n = {plan.n} needs as many segments, one adapter and one coarse block fewer; it has {counts[0]} "
        return [fault + f"segments, {counts[1] - 1} adapters and {counts[2] - 1} coarse blocks"]
    faults = []
    for before, after in pairwise(plan.segments):
        if after.first != before.last + 1:
            faults.append(f"segment {after.j} begins at block {after.first}, segment {before.j} ends at {before.last}")
        if after.x != before.y:
            faults.append(f"segment {after.j} reads {after.x}, segment {before.j} gives {before.y}")
    if plan.stem_blocks < 0 or (plan.stem_blocks and plan.source == "input"):
        faults.append(f"{plan.stem_blocks} blocks in the stem, and adapters that read the {plan.source}")
    if plan.segments[0].first != 0:
        faults.append(f"segment 1 begins at block {plan.segments[0].first}, not 0")
    faults += [
        f"segment {s.j} holds blocks {s.first} to {s.last}, which is not {s.blocks}"
        for s in plan.segments
        if s.blocks != s.last - s.first + 1 or s.blocks < 1
    ]
    numbering: list[tuple[str, Sequence[Any], int]] = [
        ("segment", plan.segments, 1),
        ("adapter", plan.adapters, 2),
        ("coarse block", plan.coarse_blocks, 1),
    ]
    for name, rows, begin in numbering:
        faults += [f"{name} {i} is numbered {row.j}" for i, row in enumerate(rows, begin) if row.j != i]
    return faults


def fingerprint(chain: BlockChain) -> str:
    """Sixteen hexadecimal digits that depend on the blocks' names, kinds and exact structure, not on weights."""
    parts = [
        (block.name, block.kind, block.exact_signature, str(block.x), str(block.y))
        for block in (chain.stem, *chain.blocks, chain.head)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


# As text ------------------------------------------------------------------------------------------------------------

_NAME = 22  # characters of a block's name; longer ones lose their middle


def plan_text(plan: Plan) -> str:
    """Segments, adapters, coarse blocks, totals and notes."""
    cuts = plan.cuts if isinstance(plan.cuts, str) else "by name"
    title = f"{plan.model}: n = {plan.n}, coarse {plan.coarse!r}, cuts {cuts!r}, adapters read the {plan.source}"
    stem, head = _part("stem", plan.stem, plan.stem_blocks), _part("head", plan.head)
    tables = [aligned([_SEGMENTS, stem, *map(_segment, plan.segments), head], "lllrllrrrl")]
    if plan.n > 1:
        tables.append(aligned([_ADAPTERS, *map(_adapter_row, plan.adapters)], "llll"))
        tables.append(aligned([_COARSE, *map(_coarse, plan.coarse_blocks)], "lllll"))
    tables.append(_totals(plan))
    tables.append("\n".join(f"note: {note}" for note in plan.notes))
    text = visible("\n\n".join([title, *filter(None, tables)]))
    return "\n".join(shortened(line, plan.WIDTH) for line in text.splitlines())


_SEGMENTS = ("g", "first block", "last block", "blocks", "input", "output", "params", "GFLOPs", "backward", "device")
_ADAPTERS = ("C", "input", "output", "recipe", "params", "MFLOPs")
_COARSE = ("F", "kind", "", "input", "output", "params", "GFLOPs", "backward")


def _part(name: str, part: PartPlan, blocks: int = 0) -> tuple[str | None, ...]:
    return name, None, None, str(blocks or ""), None, None, *_sizes(part), None


def _sizes(row: PartPlan | SegmentPlan | CoarsePlan) -> tuple[str, str, str]:
    return count(row.parameters), billions(row.flops_forward), billions(row.flops_backward)


def _segment(row: SegmentPlan) -> tuple[str, ...]:
    names = _short(row.first_block), _short(row.last_block)
    return (str(row.j), *names, str(row.blocks), str(row.x), str(row.y), *_sizes(row), row.device)


def _adapter_row(row: AdapterPlan) -> tuple[str, ...]:
    return str(row.j), str(row.x), str(row.y), row.recipe, count(row.parameters), f"{row.flops_forward / 1e6:.2f}"


def _coarse(row: CoarsePlan) -> tuple[str, ...]:
    units = f"× {row.units}" if row.units else ""
    kernel = f", {row.kernel} wide" if row.kernel else ""
    return (str(row.j), row.kind, units + kernel, str(row.x), str(row.y), *_sizes(row))


def _totals(plan: Plan) -> str:
    p = plan.parameters
    unit = "operations a sample" if plan.unit == "flops" else f"seconds a batch of {plan.batch}"
    return (
        f"parameters: {count(p.original)} original + {count(p.adapters)} adapters + {count(p.coarse)} coarse "
        f"= {count(p.total)}\n"
        f"one step:   {plan.serial:.4g} {unit} in sequence, {plan.critical_path:.4g} on the longest path of the plan\n"
        f"speed-up:   {plan.virtual_speedup:.2f}×, with a device for each segment and free messages"
    )


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 1]}…{name[-_NAME // 2 :]}"
