"""BlockChain, fields, Costs, n -> Plan: where to cut, which adapters and which coarse blocks. Plain data, no modules.

A plan prints as a table, survives JSON with a version and a schema, and knows which network it is for.
"""

import math
import re
from dataclasses import dataclass as plain_dataclass
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.finder import Granularity
from pararealize.argument_types import typed_arguments, typed_fields
from pararealize.coarse.spec import STRICT, AdapterPlan, CoarsePlan, CorrectionPlan, Cost, Count, NumberedRow, Text
from pararealize.control_characters import visible
from pararealize.errors import PlanError
from pararealize.table import aligned, billions, count, quantity, shortened

from .consistency import cut_faults, kind_faults, row_faults
from .corrections import correction_faults, layer_misfits
from .fingerprints import fingerprint
from .json_text import parse_json, read_json
from .numbering import numbering_faults
from .scheduled_step import device_runs, step_seconds
from .spec import RATE, PartPlan, PlannedRows, Rate, SegmentPlan, Window
from .times import plan_times
from .transfer import Transfer

__all__ = ["VERSION", "PartPlan", "Plan", "SegmentPlan", "Totals", "Window"]

VERSION = 2
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
class Plan(PlannedRows):
    """How a network becomes windows of at most n segments, with adapters and coarse blocks.

    Attributes:
        version: of this format.
        model: the class name of the model.
        fingerprint: of the model's chain of blocks; :meth:`check` compares it.
        n: the number of segments of the longest window, and of devices that they run on.
        coarse: the kind of coarse blocks that was asked for.
        cuts: ``"cost"``, ``"paper"``, or the names of the blocks at which segments begin.
        source: what the adapters of the first window read; those of the others read what the window before gives.
        batch: the batch size of the example.
        unit: of every cost: ``"flops"``, work per sample, or ``"seconds"``, measured at that batch size.
        stem: the part before the first segment.
        head: the part after the last.
        segments: g^{m,j}, window after window: g^1 to g^n where there is one window alone.
        adapters: C^{m,j}, j > 1, likewise.
        coarse_blocks: F^{m,j}, j < n_m, likewise.
        notes: what the user should know.
        corrections: the K^{m,j} that there are.
        latency: seconds of a message between two devices.
        bandwidth: bytes a second of a message; ``None`` where they cost nothing.
        rate: operations a second, with which counted costs are compared with messages.
        granularity: what the model's blocks are: see :func:`~pararealize.find_blocks`.
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
    corrections: tuple[CorrectionPlan, ...] = ()
    latency: Cost = 0.0
    bandwidth: Rate | None = None
    rate: Rate = RATE
    granularity: Granularity = "repeated"

    WIDTH: ClassVar[int] = 120

    def __post_init__(self) -> None:
        rows = self.segments, self.adapters, self.coarse_blocks, self.corrections
        if faults := numbering_faults(*rows, n=self.n, source=self.source):
            raise ValueError("; ".join(faults))

    # What follows from it -------------------------------------------------------------------------------------------

    @property
    def serial(self) -> float:
        """The cost of one step of the original network, one block after the other."""
        return self.stem.cost + sum(segment.cost for segment in self.segments) + self.head.cost

    @property
    def critical_path(self) -> float:
        """The cost of one step with a device for each segment of a window.

        Forward, ``t_1 = s_1``, ``t_{j+1} = max(s_{j+1}, t_j) + c_j`` for each window, one after the other, then the
        head; ``s_j`` is a segment with its adapter (in the first window also with the stem, where that is what the
        adapter reads), ``c_j`` the coarse block F^j. Backward is the mirror image: the head, and the same recursion on
        the backward costs. Messages are free, and coarse blocks stand in a row; :attr:`step` counts both.
        """
        return self._path("cost_forward") + self._path("cost_backward")

    def _path(self, cost: Literal["cost_forward", "cost_backward"]) -> float:
        """The longest path in one direction."""
        time: float = getattr(self.stem, cost)
        for window in self.windows:
            wait = 0.0 if window.m == 1 and self.source == "input" else time  # adapters read what was there by then
            fine_of = {row.j: getattr(row, cost) for row in window.segments}
            for row in window.corrections:
                fine_of[row.j] += getattr(row, cost)
            time += fine_of[1]
            for adapter, coarse in zip(window.adapters, window.coarse_blocks, strict=True):
                fine = wait + getattr(adapter, cost) + fine_of[adapter.j]
                time = max(fine, time) + getattr(coarse, cost)
        return float(time + getattr(self.head, cost))

    @property
    def virtual_speedup(self) -> float:
        """``serial / critical_path``, with n devices, free messages and coarse blocks in a row."""
        return self.serial / self.critical_path if self.critical_path else 1.0

    @property
    def transfer(self) -> Transfer:
        """What a message takes, as the plan was made for."""
        return Transfer(self.latency, math.inf if self.bandwidth is None else self.bandwidth)

    @property
    def step(self) -> float:
        """Seconds of one step with n devices, the plan's messages counted.

        Coarse blocks that are the identity are summed over ranks where that is faster, as ranks do; it is the step that
        :func:`~pararealize.plan.simulation.simulate` gives without further arguments.
        """
        return self.step_of()

    def step_of(self, *, training: bool = True) -> float:
        """:attr:`step`, or without training the seconds of the forward pass alone."""
        batch = max(self.batch, 1)
        times = plan_times(self, batch=batch, rate=self.rate)
        runs = device_runs(self.n)
        return step_seconds(self, times, runs, batch=batch, transfer=self.transfer, training=training)

    @property
    def speedup(self) -> float:
        """What the plan predicts with n devices: the seconds of the original's own parts over those of :attr:`step`."""
        step, serial = self.step, sum(plan_times(self, batch=max(self.batch, 1), rate=self.rate).serial)
        return serial / step if step else 1.0

    @property
    def links(self) -> str:
        """How many devices the prediction is for, and what messages between them take, in words."""
        devices = "a device for each segment" if len(self.windows) == 1 else quantity(self.n, "device")
        if not self.latency and self.bandwidth is None:
            return f"{devices} and free messages"
        work = f", counted work at {self.rate:g} operations a second" if self.unit == "flops" else ""
        return f"{devices}, messages of {self.transfer}{work}"

    @property
    def parameters(self) -> Totals:
        """Numbers of parameters."""
        original = self.stem.parameters + sum(row.parameters for row in self.segments) + self.head.parameters
        adapters = sum(row.parameters for row in self.adapters)
        coarse = sum(row.parameters for row in self.coarse_blocks)
        coarse += sum(row.parameters for row in self.corrections)
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
        faults = faults or kind_faults(self.coarse, self.coarse_blocks) + cut_faults(self.cuts, self.segments)
        return faults or correction_faults(self.coarse, self.windows, self.corrections)

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
        if chain.granularity != self.granularity:
            alike += (
                f"; its blocks are the {self.granularity} ones, and here they are the {chain.granularity} ones: "
                f"granularity={self.granularity!r} finds those of the plan"
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
        if len(blocks) != planned:
            return [f"{len(blocks)} blocks, not {planned}"]
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
            name = segment.label
            faults += [f"{name}'s {what}: {now}, not {then}" for what, now, then in here if now != then]
        ends = ("stem", chain.stem, self.stem), ("head", chain.head, self.head)
        for name, block, part in ends if exact else ():
            if block.parameters != part.parameters:
                faults.append(f"{name}'s parameters: {block.parameters}, not {part.parameters}")
        return faults + layer_misfits(chain, self.segments, self.corrections)

    def __str__(self) -> str:
        return plan_text(self)


_ADAPTER = TypeAdapter(Plan)


# As text ------------------------------------------------------------------------------------------------------------

_NAME = 22  # characters of a block's name; longer ones lose their middle


def plan_text(plan: Plan) -> str:
    """Segments, adapters, coarse blocks, totals and notes."""
    cuts = plan.cuts if isinstance(plan.cuts, str) else "by name"
    parallel = sum(not window.sequential for window in plan.windows)
    windows = f", {quantity(parallel, 'window')}" if len(plan.windows) > 1 else ""
    title = (
        f"{plan.model}: n = {plan.n}{windows}, coarse {plan.coarse!r}, cuts {cuts!r}, adapters read the {plan.source}"
        f"{'' if plan.granularity == 'repeated' else f', {plan.granularity} blocks'}"
    )
    stem, head = _part("stem", plan.stem), _part("head", plan.head)
    tables = [aligned([_SEGMENTS, stem, *map(_segment, plan.segments), head], "lllrllrrrl")]
    if plan.n > 1:
        tables.append(aligned([_ADAPTERS, *map(_adapter_row, plan.adapters)], "llll"))
        tables.append(aligned([_COARSE, *map(_coarse, plan.coarse_blocks)], "lllll"))
    if plan.corrections:
        tables.append(aligned([_CORRECTIONS, *map(_correction, plan.corrections)], "llll"))
    tables.append(_totals(plan))
    tables.append("\n".join(f"note: {note}" for note in plan.notes))
    text = visible("\n\n".join([title, *filter(None, tables)]))
    return "\n".join(shortened(line, plan.WIDTH) for line in text.splitlines())


_SEGMENTS = ("g", "first block", "last block", "blocks", "input", "output", "params", "GFLOPs", "backward", "device")
_ADAPTERS = ("C", "input", "output", "recipe", "params", "MFLOPs")
_CORRECTIONS = ("K", "kind", "reads", "output", "params", "GFLOPs", "backward")
_COARSE = ("F", "kind", "", "input", "output", "params", "GFLOPs", "backward")


def _part(name: str, part: PartPlan) -> tuple[str | None, ...]:
    return name, None, None, "", None, None, *_sizes(part), None


def _correction(row: CorrectionPlan) -> tuple[str, ...]:
    rank = f" of rank {row.rank}" if row.rank else ""
    reads = ("y - x" if row.differs else "y") + (", x" if row.reads_x else "")
    reads = f"in {_short(row.layer)}" if row.layer else reads
    return _number(row), f"{row.kind}{rank}", reads, str(row.y), *_sizes(row)


def _sizes(row: PartPlan | SegmentPlan | CoarsePlan | CorrectionPlan) -> tuple[str, str, str]:
    return count(row.parameters), billions(row.flops_forward), billions(row.flops_backward)


def _segment(row: SegmentPlan) -> tuple[str, ...]:
    names = _short(row.first_block), _short(row.last_block)
    return (_number(row), *names, str(row.blocks), str(row.x), str(row.y), *_sizes(row), row.device)


def _number(row: NumberedRow) -> str:
    """``(m, j)`` as the network's names have it."""
    return row.name.removeprefix(row.LETTER)


def _adapter_row(row: AdapterPlan) -> tuple[str, ...]:
    return _number(row), str(row.x), str(row.y), row.recipe, count(row.parameters), f"{row.flops_forward / 1e6:.2f}"


def _coarse(row: CoarsePlan) -> tuple[str, ...]:
    units = f"× {row.units}" if row.units else ""
    kernel = f", {row.kernel} wide" if row.kernel else ""
    return (_number(row), row.kind, units + kernel, str(row.x), str(row.y), *_sizes(row))


def _totals(plan: Plan) -> str:
    p = plan.parameters
    unit = "operations a sample" if plan.unit == "flops" else f"seconds a batch of {plan.batch}"
    speedup = plan.speedup
    longest = plan.serial / max(speedup, 1e-60)
    return (
        f"parameters: {count(p.original)} original + {count(p.adapters)} adapters + {count(p.coarse)} coarse "
        f"= {count(p.total)}\n"
        f"one step:   {plan.serial:.4g} {unit} in sequence, {longest:.4g} on the longest path of the plan\n"
        f"speed-up:   {speedup:.2f}×, with {plan.links}"
    )


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 1]}…{name[-_NAME // 2 :]}"
