"""Actions of every rank, with start and end -> Timeline: who does what when, simulated or recorded.

Names of actions are those of ``actions.py``: ``stem``, ``C3``, ``g3``, ``F2``, ``head``, and messages such as ``z2``.
"""

import graphlib
import textwrap
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from pararealize.argument_types import typed_fields
from pararealize.coarse.spec import STRICT, Number, Text
from pararealize.control_characters import visible
from pararealize.errors import PlanError
from pararealize.table import aligned, duration, from_to, quantity, share, shortened, time_unit

from .actions import Action, ActionKind, Direction, in_order, kind_of
from .json_text import parse_json, read_json
from .spans import Row, needs_of, spans_of

__all__ = ["VERSION", "Timeline", "timeline_text"]

VERSION = 1
MOST_FAULTS = 12  # that a message lists
LONGEST = 500  # characters of a note, as it is printed
_ROUNDING = 1e-9


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Timeline:
    """One step of a parareal network: every action of every rank.

    Attributes:
        version: of this format.
        model: the class name of the model.
        n: the number of segments.
        ranks: the number of devices.
        origin: ``"simulated"`` or ``"recorded"``.
        actions: in order of start.
        notes: what it was made with: latency, bandwidth, batch and so on.
        corrections: seconds of the segments' output corrections, which are no work of the original's and are within the
            segments' actions.
    """

    version: int = VERSION
    model: Text
    n: Number
    ranks: Number
    origin: Literal["simulated", "recorded"]
    actions: tuple[Action, ...]
    notes: tuple[Text, ...] = ()
    corrections: float = 0.0

    def __post_init__(self) -> None:
        if faults := _inconsistencies(self):
            raise ValueError("; ".join(faults))

    # What follows from it -------------------------------------------------------------------------------------------

    @property
    def step(self) -> float:
        """Seconds from the first start to the last end."""
        if not self.actions:
            return 0.0
        return max(action.end for action in self.actions) - min(action.start for action in self.actions)

    @property
    def serial(self) -> float:
        """Seconds of the original's own work: stem, segments and head, one after the other."""
        work = sum(action.seconds for action in self.actions if action.kind in ("stem", "fine", "head"))
        return work - self.corrections

    @property
    def speedup(self) -> float:
        """``serial / step``."""
        return self.serial / self.step if self.step else 1.0

    @property
    def efficiency(self) -> float:
        """``serial / (ranks * step)``: the share of all devices' time that goes into the original's own work."""
        return self.speedup / self.ranks

    def busy(self, rank: int, kind: ActionKind | None = None, direction: Direction | None = None) -> float:
        """Seconds that a rank computes, all in all or in actions of one kind or direction."""
        actions = [action for action in self.of(rank) if kind in (None, action.kind)]
        return sum(action.seconds for action in actions if direction in (None, action.direction))

    def idle(self, rank: int) -> float:
        """Seconds of the step in which a rank waits."""
        return max(self.step - self.busy(rank), 0.0)

    def segments(self, rank: int) -> list[int]:
        """The segments that a rank computes for, in order."""
        return sorted({action.j for action in self.of(rank)})

    def of(self, rank: int) -> tuple[Action, ...]:
        """What a rank computes, in order; transfers left out."""
        return tuple(action for action in self.actions if action.rank == rank and action.kind != "transfer")

    @property
    def critical_path(self) -> tuple[Action, ...]:
        """Actions that each waited for the one before and the last of which ends the step, in order of time.

        From the last action backwards: of what it needed and of what its rank did before, the one that ended last.
        """
        if not self.actions:
            return ()
        before: dict[int, int] = {}
        for rank in range(self.ranks):
            computed = [i for i, action in enumerate(self.actions) if action.rank == rank and action.kind != "transfer"]
            before.update((later, earlier) for earlier, later in pairwise(computed))
        at = max(range(len(self.actions)), key=lambda i: self.actions[i].end)
        path = {at: None}
        while True:
            needs = [*self.actions[at].after, *([before[at]] if at in before else [])]
            candidates = [i for i in needs if i not in path]  # clocks of ranks may differ: no going round
            if not candidates:
                return tuple(self.actions[i] for i in reversed(path))
            at = max(candidates, key=lambda i: self.actions[i].end)  # of equals, a need before an order
            path[at] = None

    # Making, reading and writing ------------------------------------------------------------------------------------

    @classmethod
    def recorded(
        cls,
        records: Iterable[Row],
        *,
        model: str,
        n: int,
        source: Literal["input", "stem"] = "input",
        notes: Iterable[str] = (),
    ) -> "Timeline":
        """The timeline of a real step.

        A record is a plain tuple ``(rank, j, action, direction, start, end)``, such as a
        :class:`~pararealize.plan.recording.RecordedAction`: the rank that did it; the segment that it was for, from 1;
        ``"stem"``, ``"context"``, ``"adapter"``, ``"fine"``, ``"coarse"``, ``"head"``, ``"send"`` or ``"receive"``;
        ``"forward"`` or ``"backward"``; and seconds of one clock. The coarse block on segment j's rank is
        :math:`F^{j-1}`. ``send`` and ``receive`` are of interface values, forward from j to j + 1 and backward from j
        to j - 1, each with the segment on whose rank it was recorded; a transfer lasts from the start of the one to
        the end of the other. Where linear coarse blocks are summed over ranks, ``"difference"`` is that of segment j,
        ``"sum"`` an addition on the rank whose last segment is j, and ``"send sum"`` and ``"receive sum"`` are of what
        that rank sends, and backward of the gradient that it gets. Where the stem's output or other shared values are
        sent as well, they go before the interface value forward, and after it backward; those messages are left out.
        In a network of several windows a record has the window as its seventh item; ``"send end"`` and
        ``"receive end"`` are of what a window begins with, j the first segment of the rank that reads it, and
        ``"all-reduce"`` is a sum over all ranks. Several records of another thing become one action from first start to
        last end.

        Args:
            records: of one step, in any order.
            model: the class name of the model.
            n: the number of segments.
            source: what adapters read, which says what they wait for.
            notes: what else to know.

        Raises:
            PlanError: a record is of no known form.
        """
        spans = spans_of(records, n)
        zero = min(span.start for span in spans.values())
        spans = {key: span._replace(start=span.start - zero, end=span.end - zero) for key, span in spans.items()}
        actions = in_order(spans, {key: needs_of(key, spans, source) for key in spans})
        ranks = 1 + max(max(action.rank, action.to or 0) for action in actions)
        return cls(model=model, n=n, ranks=ranks, origin="recorded", actions=actions, notes=tuple(notes))

    def to_json(self) -> str:
        """The timeline as JSON text; :meth:`from_json` gives an equal one."""
        return _ADAPTER.dump_json(self, indent=1).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Timeline":
        """The timeline of a JSON text.

        Raises:
            PlanError: it is no JSON, of another version, incomplete, or contradicts itself; names every fault.
        """
        data = parse_json(text, "Timeline.to_json()")
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise PlanError(
                f"this is no timeline of version {VERSION} (its version is {version!r}); make it again with simulate()"
            )
        timeline = read_json(_ADAPTER, text, "timeline")
        if faults := list(_contradictions(timeline)):
            raise PlanError("this timeline cannot be read:\n" + "\n".join(faults[:MOST_FAULTS]))
        return timeline

    def __str__(self) -> str:
        return timeline_text(self)


_ADAPTER = TypeAdapter(Timeline)


def _inconsistencies(timeline: Timeline) -> list[str]:
    """What a timeline says about itself that cannot be."""
    faults = []
    slack = _ROUNDING * max((abs(action.end) for action in timeline.actions), default=0)
    names: set[str] = set()
    for i, action in enumerate(timeline.actions):
        ranks = [action.rank] if action.to is None else [action.rank, action.to]
        if not all(0 <= rank < timeline.ranks for rank in ranks):
            faults.append(f"action {i}, {action}, is on rank {ranks[-1]} of {timeline.ranks}")
        if action.end < action.start:
            faults.append(f"action {i}, {action}, ends before it starts")
        if str(action) in names:
            faults.append(f"there are two actions {action}")
        names.add(str(action))
        if any(not 0 <= other < len(timeline.actions) or other == i for other in action.after):
            faults.append(f"action {i}, {action}, comes after actions that are not there")
        elif timeline.origin == "simulated" and any(
            timeline.actions[other].end > action.start + slack for other in action.after
        ):
            faults.append(f"action {i}, {action}, starts before what it needs is there")
    fine = sum(action.seconds for action in timeline.actions if action.kind == "fine")
    if not 0 <= timeline.corrections <= fine * (1 + _ROUNDING):
        faults.append(f"corrections take {timeline.corrections} s of the segments' {fine} s")
    return faults


def _contradictions(timeline: Timeline) -> Iterator[str]:
    """What a timeline out of a file says that cannot be, besides; those that this library makes say nothing of it."""
    for i, action in enumerate(timeline.actions):
        if kind_of(action.name) != action.kind:
            yield f"action {i}, {shortened(str(action), 60)}, is no {action.kind}"
        if (action.to is not None) != (action.kind == "transfer"):
            yield f"action {i}, {shortened(str(action), 60)}, is a {action.kind} to rank {action.to}"
        if action.j > timeline.n:
            yield f"action {i}, {shortened(str(action), 60)}, is of segment {action.j} of {timeline.n}"
    ranks = {rank for action in timeline.actions for rank in (action.rank, action.to) if rank is not None}
    if timeline.ranks > max(len(ranks), 1):
        yield f"there are {timeline.ranks} ranks, and {len(ranks)} of them do something"
    try:
        graphlib.TopologicalSorter({i: action.after for i, action in enumerate(timeline.actions)}).prepare()
    except graphlib.CycleError as error:
        cycle = " after ".join(str(timeline.actions[i]) for i in error.args[1][:MOST_FAULTS])
        yield f"actions wait for one another: {shortened(cycle, 200)}"
    yield from _overlaps(timeline)


def _overlaps(timeline: Timeline) -> Iterator[str]:
    """A simulated rank computes one action at a time; a real one has streams and threads."""
    if timeline.origin == "recorded":
        return
    last: dict[int, Action] = {}
    for action in sorted(timeline.actions, key=lambda action: action.start):
        if action.kind != "transfer":
            before = last.get(action.rank, action)
            if before.end > action.start + _ROUNDING * before.end and before is not action:
                times = f"{before} until {before.end:g} s and {action} from {action.start:g} s"
                yield f"rank {action.rank} computes {times}"
            last[action.rank] = max(before, action, key=lambda one: one.end)


# As text ------------------------------------------------------------------------------------------------------------

MOST_NAMES = 96  # on the critical path
_HEAD = ("rank", "segments", "fine", "adapter", "coarse", "stem, head", "forward", "backward", "busy", "idle", "idle %")


def timeline_text(timeline: Timeline) -> str:
    """A row a rank, the step, its efficiency, and its critical path."""
    step = timeline.step
    unit, scale = time_unit(step)
    third: ActionKind = "relax" if any(action.kind == "relax" for action in timeline.actions) else "adapter"
    rows: list[tuple[str | None, ...]] = [tuple(third if name == "adapter" else name for name in _HEAD)]
    for rank in range(timeline.ranks):
        ends = timeline.busy(rank, "stem") + timeline.busy(rank, "head")
        kinds = *(timeline.busy(rank, kind) for kind in ("fine", third, "coarse")), ends
        directions = (timeline.busy(rank, direction=direction) for direction in ("forward", "backward"))
        idle = timeline.idle(rank)
        parts = *kinds, *directions, timeline.busy(rank), idle
        percent = f"{100 * idle / step:.0f}" if step else None
        rows.append((str(rank), from_to(timeline.segments(rank)), *(f"{part * scale:.2f}" for part in parts), percent))
    title = f"{shortened(timeline.model, LONGEST)}: one {timeline.origin} step, n = {timeline.n} on "
    title += f"{quantity(timeline.ranks, 'device')}, times in {unit}"
    sums = (
        f"step {duration(step)}, the original's own work {duration(timeline.serial)}: speed-up "
        f"{timeline.speedup:.2f}×, efficiency {share(timeline.efficiency)}"
    )
    names = list(map(str, timeline.critical_path))
    if len(names) > MOST_NAMES:
        half, left_out = MOST_NAMES // 2, len(names) - MOST_NAMES
        names = [*names[:half], f"… {left_out} more …", *names[-half:]]
    path = textwrap.fill("critical path: " + " → ".join(names), 118, subsequent_indent="  ")
    notes = [shortened(f"note: {note}", LONGEST) for note in timeline.notes]
    return visible("\n".join([title, "", aligned(rows), "", sums, path, *notes]))
