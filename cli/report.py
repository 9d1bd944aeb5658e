"""Values -> rich tables, plain text, and dictionaries that JSON can hold. What the command prints is made here."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from pararealize.analysis.blocks import KIND_WIDTH, Block, BlockChain, find_blocks
from pararealize.analysis.cost import BlockCost, Costs, count_costs
from pararealize.analysis.fields.field import Fields, receptive_fields
from pararealize.analysis.finder import Granularity
from pararealize.analysis.flow import RefusedCut
from pararealize.coarse.spec import AdapterPlan, CoarsePlan, CorrectionPlan
from pararealize.errors import FieldError
from pararealize.plan.plan import PartPlan, Plan, SegmentPlan
from pararealize.table import billions, count, from_to, quantity, shortened
from pararealize.tracing.front_end import capture

from .console import console_of

__all__ = [
    "Inspection",
    "inspection",
    "inspection_json",
    "inspection_tables",
    "plan_json",
    "plan_tables",
    "text",
    "training_summary",
]


def text(renderable: RenderableType, width: int = 160) -> str:
    """Tables as plain text, without colours.

    Example:
        >>> print(text(Text("a line")))
        a line
    """
    console = console_of(file=StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).rstrip("\n")


# ------------------------------------------------------------------------------------------------------------- plans


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as it is stored, and beside it what follows from it."""
    return {
        "plan": json.loads(plan.to_json()),
        "predicted": {
            "serial": plan.serial,
            "critical_path": plan.critical_path,
            "virtual_speedup": plan.virtual_speedup,
            "step": plan.step,
            "speedup": plan.speedup,
            "links": plan.links,
        },
        "parameters": dataclasses.asdict(plan.parameters),
    }


def plan_tables(plan: Plan, title: str = "") -> RenderableType:
    """The plan as tables: segments, adapters, the coarse network, totals, notes. GFLOPs are those of one sample."""
    parts: list[RenderableType] = [_segment_table(plan, title or plan.model)]
    if plan.n > 1:
        parts.append(_adapter_table(plan))
        parts.append(_coarse_table(plan))
    if plan.corrections:
        parts.append(_correction_table(plan))
    parts.append(_totals(plan))
    parts += [Text(f"note: {note}", style="yellow") for note in plan.notes]
    return Group(*parts)


def _table(title: str, words: Sequence[str], numbers: Sequence[str], notes: Sequence[str] = ()) -> Table:
    """An empty table with the names of its columns: of words, of numbers, and of words again."""
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    for name in words:
        table.add_column(name, overflow="fold", min_width=9 if "block" in name else None)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name in notes:
        table.add_column(name, overflow="fold")
    return table


def _flops(row: PartPlan | SegmentPlan | AdapterPlan | CoarsePlan | CorrectionPlan | BlockCost) -> tuple[str, str]:
    """Forward and backward, of one sample, in units of 10⁹."""
    return billions(row.flops_forward), billions(row.flops_backward)


def _segment_table(plan: Plan, title: str) -> Table:
    windows = f"{quantity(len(plan.windows), 'window')} of at most " if len(plan.windows) > 1 else ""
    title = f"{title}: {windows}{quantity(plan.n, 'segment')}, cuts {_words(plan.cuts)}"
    table = _table(
        title,
        ["", "first block", "last block"],
        ["blocks", "input", "output", "params", "GFLOPs", "backward"],
        ["device"],
    )
    table.add_row(
        "stem", "", "", "", "", str(plan.segments[0].x), count(plan.stem.parameters),
        *_flops(plan.stem), "",
    )  # fmt: skip
    for s in plan.segments:
        table.add_row(
            s.name, s.first_block, s.last_block, str(s.blocks), str(s.x), str(s.y), count(s.parameters), *_flops(s),
            s.device,
        )  # fmt: skip
    table.add_row("head", "", "", "", str(plan.segments[-1].y), "", count(plan.head.parameters), *_flops(plan.head), "")
    return table


def _words(value: str | Iterable[str]) -> str:
    return value if isinstance(value, str) else "before " + ", ".join(value)


def _adapter_table(plan: Plan) -> Table:
    table = _table(
        f"\nadapters, from {_reads(plan)}",
        [""],
        ["input", "output", "params", "GFLOPs", "backward"],
        ["recipe"],
    )
    for a in plan.adapters:
        table.add_row(a.name, str(a.x), str(a.y), count(a.parameters), *_flops(a), a.recipe)
    return table


def _reads(plan: Plan) -> str:
    """What adapters read."""
    if len(plan.windows) == 1:
        return "the input" if plan.source == "input" else "the output of the stem"
    before = "the value before their window"
    return f"the input, behind the first window {before}" if plan.source == "input" else before


def _coarse_table(plan: Plan) -> Table:
    table = _table(
        f"\ncoarse network, {plan.coarse}",
        ["", "kind"],
        ["units", "input", "output", "params", "GFLOPs", "backward"],
        ["note"] if any(c.note for c in plan.coarse_blocks) else [],
    )
    for c in plan.coarse_blocks:
        units = str(c.units) if c.units else ""
        note = [c.note] if len(table.columns) > 8 else []
        table.add_row(c.name, c.kind, units, str(c.x), str(c.y), count(c.parameters), *_flops(c), *note)
    return table


def _correction_table(plan: Plan) -> Table:
    table = _table("\noutput corrections", ["", "kind"], ["rank", "output", "params", "GFLOPs", "backward"])
    for k in plan.corrections:
        table.add_row(k.name, k.kind, str(k.rank or ""), str(k.y), count(k.parameters), *_flops(k))
    return table


def _totals(plan: Plan) -> Text:
    p = plan.parameters
    lines = Text("\n")
    lines.append("parameters  ", "bold")
    lines.append(
        f"{count(p.total)} = {count(p.original)} of the model + {count(p.adapters)} in adapters "
        f"+ {count(p.coarse)} in coarse blocks\n"
    )
    lines.append("one step    ", "bold")
    seconds, speedup = plan.unit == "seconds", plan.speedup
    costs = plan.serial, plan.serial / max(speedup, 1e-60)
    serial, longest = (f"{cost:.3g} s" if seconds else count(cost) for cost in costs)
    what = f"at batch {plan.batch}" if seconds else "operations a sample"
    lines.append(
        f"{serial} {what} in sequence, {longest} on the longest path with {plan.links}: "
        f"predicted speed-up {speedup:.2f}×"
    )
    return lines


# -------------------------------------------------------------------------------------------------------- inspection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What ``pararealize inspect`` shows: a model's blocks, their costs, and their receptive fields."""

    chain: BlockChain
    costs: Costs
    fields: tuple[str, ...]  # one a block; where an operation has no rule, what the error says

    def __str__(self) -> str:
        return text(inspection_tables(self))


def inspection(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    leaf_modules: Sequence[type | str] = (),
    granularity: Granularity = "repeated",
) -> Inspection:
    """Capture a model, find its blocks, and count: all that conversion would know before it cuts.

    Raises:
        CaptureError, CutError, ExampleError, ModelError: as ``pararealize`` itself would.
    """
    recorded = capture(model, example_inputs, leaf_modules=tuple(leaf_modules))
    chain = find_blocks(recorded, granularity=granularity)
    fields = receptive_fields(chain)
    return Inspection(
        chain=chain, costs=count_costs(chain), fields=tuple(_field(fields, i) for i in range(len(chain.blocks)))
    )


def _field(fields: Fields, i: int) -> str:
    try:
        return str(fields.of(i, i))
    except FieldError as error:
        return str(error)


def _cost_json(cost: BlockCost) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(cost).items() if value is not None}


def _block_json(block: Block, cost: BlockCost) -> dict[str, Any]:
    return {
        "name": block.name,
        "kind": block.kind,
        "x": str(block.x),
        "y": str(block.y),
        "parameters": block.parameters,
        "context": [node.name for node in block.context],
        "cost": _cost_json(cost),
    }


def inspection_json(result: Inspection) -> dict[str, Any]:
    """All of an inspection, block by block."""
    chain = result.chain
    blocks = [
        _block_json(block, cost) | {"receptive_field": field}
        for block, cost, field in zip(chain.blocks, result.costs.blocks, result.fields, strict=True)
    ]
    return {
        "model": type(chain.capture.model).__name__,
        "example": str(chain.capture.example),
        "opaque": dict(chain.capture.opaque),
        "stem": _block_json(chain.stem, result.costs.stem),
        "blocks": blocks,
        "head": _block_json(chain.head, result.costs.head),
        "stages": [list(stage) for stage in chain.stages],
        "refused": [_refused_json(cut) for cut in chain.refused],
    }


def _refused_json(cut: RefusedCut) -> dict[str, Any]:
    return {field.name: _plain(getattr(cut, field.name)) for field in dataclasses.fields(cut)}


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else str(value)


def inspection_tables(result: Inspection, *, every: bool = False) -> RenderableType:
    """Blocks, with equal neighbours in one row unless ``every``; refused cut points below."""
    chain = result.chain
    parts: list[RenderableType] = [_block_table(result, every)]
    parts += _opaque(chain.capture.opaque)
    parts.append(_refused_table(chain.refused, every))
    return Group(*parts)


def _opaque(reasons: dict[str, str]) -> list[Text]:
    """One line for each reason for which modules were not looked into, by their names."""
    modules: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        modules.setdefault(reason, []).append(name)
    return [
        Text(f"\nnot looked into, {reason}: {', '.join(sorted(names))}", style="yellow")
        for reason, names in modules.items()
    ]


def _block_table(result: Inspection, every: bool) -> Table:
    chain, costs = result.chain, result.costs
    total = sum(block.parameters for block in (chain.stem, *chain.blocks, chain.head))
    title = (
        f"{type(chain.capture.model).__name__}({chain.capture.example}): {len(chain.blocks)} blocks in "
        f"{quantity(len(chain.stages), 'stage')}, {count(total)} parameters"
    )
    numbers = ["input", "output", "params", "GFLOPs", "backward"]
    table = _table(title, ["", "block", "kind"], numbers, ["receptive field"])

    def add(number: str, name: str, block: Block, cost: BlockCost, field: str) -> None:
        x = "" if number == "stem" else str(block.x)
        y = "" if number == "head" else str(block.y)
        table.add_row(
            number,
            name,
            shortened(block.kind, KIND_WIDTH) if name else "",
            x,
            y,
            count(block.parameters),
            *_flops(cost),
            field,
        )

    add("stem", "", chain.stem, costs.stem, "")
    for first, last in _runs(range(len(chain.blocks)), lambda i: i if every else chain.blocks[i].exact_signature):
        block, times = chain.blocks[first], last - first + 1
        number = from_to(range(first + 1, last + 2))
        name = block.name if times == 1 else f"{block.name} – {chain.blocks[last].name} ({times} equal)"
        add(number, name, block, costs.blocks[first], result.fields[first])
    add("head", "", chain.head, costs.head, "")
    return table


def _runs(items: Iterable[int], key: Callable[[int], object]) -> Iterator[tuple[int, int]]:
    """First and last of each run of neighbours with one key."""
    for _, run in itertools.groupby(items, key):
        members = list(run)
        yield members[0], members[-1]


EXAMPLES = 3  # refused cut points shown for each reason, where not all are


def _refused_table(refused: Sequence[RefusedCut], every: bool) -> RenderableType:
    if not refused:
        return Text("\nno cut point was refused", style="dim")
    lines = Text(f"\n{quantity(len(refused), 'cut point')} refused", style="bold")
    reasons: dict[str, list[RefusedCut]] = {}
    for cut in refused:
        reasons.setdefault(cut.why, []).append(cut)
    for why, cuts in reasons.items():
        lines.append(f"\n  {len(cuts)} where {why}", style="not bold")
        shown = cuts if every else cuts[:EXAMPLES]
        for cut in shown:
            where = f" in {cut.module}" if cut.module else ""
            lines.append(f"\n      after {cut.after}{where}: {', '.join(cut.alive)}", style="not bold dim")
        if len(shown) < len(cuts):
            lines.append(f"\n      … and {len(cuts) - len(shown)} more (--all shows them)", style="not bold dim")
    return lines


# ---------------------------------------------------------------------------------------------------------- training


def training_summary(losses: Sequence[float], seconds: float) -> str:
    """How the loss went, in one line.

    Example:
        >>> print(training_summary([2.5, 2.4, 2.0, 1.5, 1.2, 1.0], seconds=30.0))
        loss 2.450 -> 1.100 (first and last third, means) in 6 steps, 30 s in all
    """
    part = max(1, len(losses) // 3)
    first, last = (sum(chosen) / part for chosen in (losses[:part], losses[-part:]))
    return (
        f"loss {first:.3f} -> {last:.3f} (first and last third, means) in {len(losses)} steps, {seconds:.0f} s in all"
    )
