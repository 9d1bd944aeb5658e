"""A plan, a chain of blocks, or both -> Section: the network as blocks, its cuts, shapes, receptive fields, guards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from pararealize.analysis.blocks import KIND_WIDTH, BlockChain, runs
from pararealize.analysis.cost import Costs, count_costs
from pararealize.analysis.fields.field import Fields, receptive_fields
from pararealize.coarse.spec import AdapterPlan, CoarsePlan, CorrectionPlan
from pararealize.errors import FieldError
from pararealize.plan.plan import PartPlan, Plan, SegmentPlan, Window
from pararealize.table import billions, count, from_to, quantity, shortened

from .elements import CardGroup, Cards, PartCard, Section, Table
from .picture import picture_of

__all__ = ["section_of_chain", "section_of_plan"]

LOOKS = 6  # colours and patterns of the style sheet
MOST_NAME = 80  # letters of a name in a card or a cell
MOST_REFUSED = 200  # rows of the table
COSTS = ("parameters", "GFLOPs", "backward")


def section_of_plan(plan: Plan, chain: BlockChain | None, *, title: str, prefix: str) -> Section:
    """The cut network.

    Args:
        plan: where it is cut, and what is added.
        chain: its blocks, where they are known, for names, receptive fields and guards.
        title: of the network.
        prefix: of the names in its picture.
    """
    windows = [window for window in plan.windows if not window.sequential]
    several = len(plan.windows) > 1
    shape = quantity(len(windows), "window") + " of at most " if several else ""
    lead = f"{plan.model} in {shape}{quantity(plan.n, 'segment')}, coarse blocks {plan.coarse!r}, cuts {_cuts(plan)}. "
    lead += "Segments of a window run at the same time; the next window waits for them." if several else (
        "All segments run at the same time; each gets its input from an adapter, and what that misses goes through the "
        "coarse blocks."
    )  # fmt: skip
    fields = None if chain is None else receptive_fields(chain)
    groups = tuple(_groups(plan, fields))
    look = "window, its pattern of its segment." if several else "segment."
    description = f"Each card is a part of the network, a cell a block; its colour is that of its {look}"
    tables = [_sizes(plan), _segments(plan), _added("Adapters C", plan.adapters)]
    tables += [_added("Coarse blocks F", plan.coarse_blocks), _corrections(plan.corrections)]
    if chain is not None:
        tables += [*_chain_tables(chain, count_costs(chain), fields), _guards(chain)]
    return Section(
        title=f"The network: {title}",
        lead=lead,
        facts=_facts(plan),
        figures=(
            picture_of(plan, title=_plain(title), prefix=prefix),
            Cards(title="Part by part", description=description, groups=groups),
        ),
        tables=tuple(table for table in tables if table.rows),
        notes=plan.notes,
    )


def section_of_chain(chain: BlockChain, *, title: str) -> Section:
    """A network that is not cut: its blocks, and where it could be cut."""
    costs, fields = count_costs(chain), receptive_fields(chain)
    blocks, stages = quantity(len(chain.blocks), "block"), quantity(len(chain.stages), "stage")
    parts = (chain.stem, *chain.blocks, chain.head)
    groups = []
    for number, (first, last) in enumerate(chain.stages, 1):
        found = runs(block.exact_signature for block in chain.blocks[first : last + 1])
        cards = [_chain_card(chain, costs, fields, first + a, first + b, number - 1) for _, a, b in found]
        groups.append(CardGroup(title=f"Stage {number}: values of {chain.blocks[first].y}", cards=tuple(cards)))
    description = "Each card is a run of equal blocks, a cell a block; its colour and pattern are those of its stage."
    tables = (*_chain_tables(chain, costs, fields, folded=False), _refused(chain), _guards(chain))
    work = costs.stem.flops_forward + sum(cost.flops_forward for cost in costs.blocks) + costs.head.flops_forward
    return Section(
        title=f"The network: {title}",
        lead=f"{type(chain.capture.model).__name__}({chain.capture.example}): {blocks} in {stages}, between a stem and "
        "a head. It can be cut between any two blocks.",
        facts=(
            ("blocks", str(len(chain.blocks))),
            ("parameters", count(sum(part.parameters for part in parts))),
            ("GFLOPs a sample, forward", billions(work)),
            ("cut points refused", str(len(chain.refused))),
        ),
        figures=(Cards(title="Stage by stage", description=description, groups=tuple(groups)),),
        tables=tuple(table for table in tables if table.rows),
        notes=tuple(f"{name} was not looked into: {why}" for name, why in sorted(chain.capture.opaque.items())),
    )


# Cards --------------------------------------------------------------------------------------------------------------


def _groups(plan: Plan, fields: Fields | None) -> Iterator[CardGroup]:
    yield CardGroup(title="Before", cards=(_part_card("stem", plan.stem),))
    for sequential, run in itertools.groupby(plan.windows, key=lambda window: window.sequential and plan.n > 1):
        windows = list(run)
        if sequential:
            cards = [card for window in windows for card in _window_cards(plan, window, fields)]
            numbers = from_to([window.m for window in windows])
            yield CardGroup(title=f"In sequence, as in the original (windows {numbers})", cards=tuple(cards))
            continue
        for window in windows:
            title = f"Window {window.m}: " if len(plan.windows) > 1 else ""
            title += f"{quantity(window.n, 'segment')} at the same time" if window.n > 1 else "one segment"
            yield CardGroup(title=title, cards=tuple(_window_cards(plan, window, fields)))
    yield CardGroup(title="After", cards=(_part_card("head", plan.head),))


def _window_cards(plan: Plan, window: Window, fields: Fields | None) -> Iterator[PartCard]:
    adapters = {row.j: row for row in window.adapters}
    coarse = {row.j + 1: row for row in window.coarse_blocks}
    corrections = {row.j: row for row in window.corrections}
    several = len(plan.windows) > 1
    for segment in window.segments:
        j = segment.j
        facts = [("blocks", f"{segment.blocks}: {_ends(segment.first_block, segment.last_block)}")]
        facts.append(("shapes", f"{segment.x} → {segment.y}"))
        if fields is not None:
            facts.append(("receptive field", _field(fields, segment.first, segment.last)))
        facts.append(("parameters", count(segment.parameters)))
        facts.append(("GFLOPs", f"{billions(segment.flops_forward)} + {billions(segment.flops_backward)} backward"))
        facts.append(("input from", _source(window, adapters.get(j))))
        if row := coarse.get(j):
            units = f"{row.units} × " if row.units else ""
            name = f"F {_number(row)}, {units}{row.kind}"
            facts.append(("corrected by", f"{name}, {_parameters(row.parameters)}"))
        if correction := corrections.get(j):
            rank = f" of rank {correction.rank}" if correction.rank else ""
            facts.append(("output correction", f"{correction.kind}{rank}"))
        if segment.device:
            facts.append(("device", segment.device))
        yield PartCard(
            letter="g",
            index=_number(segment),
            colour=((window.m - 1) if several else (j - 1)) % LOOKS,
            pattern=(j - 1) % LOOKS,
            cells=segment.blocks,
            facts=tuple(facts),
        )


def _source(window: Window, adapter: AdapterPlan | None) -> str:
    if adapter is None:
        return "the stem" if window.m == 1 else "the window before"
    reads = {"input": "the network's input", "stem": "the stem", "window": "the window before"}[adapter.source]
    recipe = f"{adapter.recipe}, " if adapter.recipe else ""
    return f"adapter C {_number(adapter)} of {reads}: {recipe}{_parameters(adapter.parameters)}"


def _parameters(number: int) -> str:
    return f"{count(number)} parameters" if number else "no parameters"


def _part_card(name: str, part: PartPlan) -> PartCard:
    work = f"{billions(part.flops_forward)} + {billions(part.flops_backward)} backward"
    return PartCard(letter=name, facts=(("parameters", count(part.parameters)), ("GFLOPs", work)))


def _chain_card(chain: BlockChain, costs: Costs, fields: Fields, first: int, last: int, look: int) -> PartCard:
    block, number = chain.blocks[first], last - first + 1
    cost = costs.blocks[first]
    each = " each" if number > 1 else ""
    return PartCard(
        letter="blocks" if number > 1 else "block",
        index=from_to(range(first + 1, last + 2)),
        colour=look % LOOKS,
        pattern=look % LOOKS,
        cells=number,
        facts=(
            ("names", _ends(block.name, chain.blocks[last].name)),
            ("kind", shortened(block.kind, KIND_WIDTH)),
            ("shapes", f"{block.x} → {block.y}"),
            ("receptive field", _field(fields, first, first)),
            ("parameters", count(block.parameters) + each),
            ("GFLOPs", f"{billions(cost.flops_forward)} + {billions(cost.flops_backward)} backward{each}"),
        ),
    )


# Tables -------------------------------------------------------------------------------------------------------------


def _facts(plan: Plan) -> tuple[tuple[str, str], ...]:
    devices = "a device a segment" if len(plan.windows) == 1 else quantity(plan.n, "device")
    return (
        (f"predicted speed-up, {devices}, messages free", f"{plan.virtual_speedup:.2f}×"),
        ("parameters", count(plan.parameters.total)),
        ("of them added", count(plan.parameters.adapters + plan.parameters.coarse)),
    )


def _sizes(plan: Plan) -> Table:
    p, seconds = plan.parameters, plan.unit == "seconds"
    serial, longest = (f"{cost:.3g} s" if seconds else count(cost) for cost in (plan.serial, plan.critical_path))
    what = f"seconds of a step at batch {plan.batch}" if seconds else "operations of a step, a sample"
    return Table(
        caption="What it has and costs",
        head=("", "number"),
        rows=(
            ("parameters of the model", count(p.original)),
            ("parameters of adapters", count(p.adapters)),
            ("parameters of coarse blocks and corrections", count(p.coarse)),
            (f"{what}, in sequence", serial),
            (f"{what}, on the longest path", longest),
            ("predicted speed-up", f"{plan.virtual_speedup:.2f}×"),
        ),
    )


def _segments(plan: Plan) -> Table:
    rows: list[tuple[str | None, ...]] = [("stem", None, None, None, None, None, *_costs(plan.stem))]
    for s in plan.segments:
        names = _short(s.first_block), _short(s.last_block)
        rows.append((f"g {_number(s)}", *names, str(s.blocks), str(s.x), str(s.y), *_costs(s)))
    rows.append(("head", None, None, None, None, None, *_costs(plan.head)))
    return Table(
        caption="Segments", head=("part", "first block", "last block", "blocks", "input", "output", *COSTS),
        rows=tuple(rows), columns="lll",
    )  # fmt: skip


def _added(caption: str, added: Sequence[AdapterPlan | CoarsePlan]) -> Table:
    rows = []
    for row in added:
        what = row.recipe if isinstance(row, AdapterPlan) else f"{row.units} × {row.kind}" if row.units else row.kind
        note = row.note if isinstance(row, CoarsePlan) else ""
        words = f"{row.LETTER} {_number(row)}", "; ".join(filter(None, (what, note)))
        rows.append((*words, str(row.x), str(row.y), *_costs(row)))
    return Table(caption=caption, head=("part", "kind", "input", "output", *COSTS), rows=tuple(rows), columns="ll")


def _corrections(corrections: Sequence[CorrectionPlan]) -> Table:
    rows = ((f"K {_number(k)}", k.kind, str(k.rank or ""), str(k.y), *_costs(k)) for k in corrections)
    head = ("part", "kind", "rank", "output", *COSTS)
    return Table(caption="Output corrections K", head=head, rows=tuple(rows), columns="ll")


def _chain_tables(chain: BlockChain, costs: Costs, fields: Fields | None, *, folded: bool = True) -> Iterator[Table]:
    assert fields is not None
    rows: list[tuple[str | None, ...]] = []
    for _, first, last in runs(block.exact_signature for block in chain.blocks):
        block, cost, equal = chain.blocks[first], costs.blocks[first], last - first + 1
        work = billions(cost.flops_forward), billions(cost.flops_backward)
        rows.append((
            from_to(range(first + 1, last + 2)), _ends(block.name, chain.blocks[last].name),
            shortened(block.kind, KIND_WIDTH), _field(fields, first, first), str(block.x), str(block.y),
            count(block.parameters) + (" each" if equal > 1 else ""), *work,
        ))  # fmt: skip
    head = ("block", "name", "kind", "receptive field", "input", "output", *COSTS)
    yield Table(caption="Blocks, equal ones together", head=head, rows=tuple(rows), columns="llll", folded=folded)


def _refused(chain: BlockChain) -> Table:
    rows = [(cut.after, cut.module, cut.why, ", ".join(cut.alive)) for cut in chain.refused]
    caption = f"Cut points refused ({len(rows)})" + (f", the first {MOST_REFUSED}" if len(rows) > MOST_REFUSED else "")
    return Table(
        caption=caption, head=("after", "within", "because", "tensors in use"),
        rows=tuple(tuple(_short(cell) for cell in row) for row in rows[:MOST_REFUSED]), columns="llll", folded=True,
    )  # fmt: skip


def _guards(chain: BlockChain) -> Table:
    rows = tuple((guard.condition, guard.line) for guard in chain.capture.guards)
    caption = "Guards: conditions on the inputs, for others the network is recorded anew"
    return Table(caption=caption, head=("condition", "asked for by"), rows=rows, columns="ll")


def _costs(row: PartPlan | SegmentPlan | AdapterPlan | CoarsePlan | CorrectionPlan) -> tuple[str, str, str]:
    return count(row.parameters), billions(row.flops_forward), billions(row.flops_backward)


def _cuts(plan: Plan) -> str:
    if isinstance(plan.cuts, str):
        return {"cost": "where a step is shortest", "paper": "equally in each stage"}.get(plan.cuts, plan.cuts)
    return "before " + _short(", ".join(plan.cuts))


def _field(fields: Fields, first: int, last: int) -> str:
    try:
        return str(fields.of(first, last))
    except FieldError as error:
        return f"unknown: {error}"


def _number(row: SegmentPlan | AdapterPlan | CoarsePlan | CorrectionPlan) -> str:
    return f"{row.m},{row.j}" if row.m else f"{row.j}"


def _ends(first: str, last: str) -> str:
    return _short(first) if first == last else f"{_short(first)} – {_short(last)}"


def _short(text: str) -> str:
    return shortened(text, MOST_NAME)


def _plain(title: str) -> str:
    """A title as matplotlib is to draw it, letter by letter."""
    from pararealize.figure import label

    return label(title, 60)
