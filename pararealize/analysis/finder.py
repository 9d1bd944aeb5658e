"""Flow -> BlockSpans: the stretches between cut points that are the blocks, by module and, failing that, by layer."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import fx, nn

from .flow import Flow, module_path, numbered
from .signature import main_value, signatures, weights_of, work

__all__ = ["ENOUGH", "BlockFinder", "BlockSpan", "Granularity", "entry_of"]

Granularity: TypeAlias = Literal["repeated", "finest"]
ENOUGH = 0.35  # of all work must lie in modules of one class for them to be the blocks
_COMPARABLE = 0.7  # of the best class's work, for a class with more instances to be preferred
_WORTH_IT = 0.05  # of all work, for a class before or after the main one to be blocks and not stem or head
_LIGHT = ("Norm", "ReLU", "ELU", "GELU", "SiLU", "Sigmoid", "Tanh", "Hardswish", "Mish", "Dropout", "Identity")


@dataclasses.dataclass(frozen=True, slots=True)
class BlockSpan:
    """Positions ``first`` to ``last`` of the order: one block."""

    first: int
    last: int
    name: str
    kind: str


@dataclasses.dataclass(slots=True)
class _LayerGroup:
    """A weighted layer of a kind with the light layers behind it; or, without a kind, what belongs to none."""

    kind: str | None
    first: int
    last: int


class BlockFinder:
    """Looks for the stretches between cut points that are blocks, by module and, failing that, by layer.

    Args:
        flow: the state in execution order, with its cut points.
        tails: whether a module's call may be joined by operations without weights before and behind it, up to the next
            cuts, as by the sum that its caller adds one of its results to.
    """

    def __init__(self, flow: Flow, *, tails: bool = False) -> None:
        self.flow, self.tails = flow, tails
        self.module_of: Callable[[str], nn.Module] = flow.capture.graph_module.get_submodule
        self.work = [work(node, self.module_of) for node in flow.order]
        self.work_before = [0.0, *itertools.accumulate(self.work)]
        self.ends = set(flow.cuts)
        one_input = flow.start == 0 and entry_of(flow) is not None  # an interface that the first block may read
        self.begins = {0 if one_input else -1} | {cut + 1 for cut in flow.cuts if cut >= flow.start}
        self.calls = self._module_calls()

    def amount(self, first: int, last: int) -> float:
        """The work between two positions, both included."""
        return self.work_before[last + 1] - self.work_before[first]

    def _work_of(self, spans: list[BlockSpan]) -> float:
        return sum(self.amount(span.first, span.last) for span in spans)

    def share(self, spans: list[BlockSpan]) -> float:
        """How much of all work lies within spans, from 0 to 1."""
        return self._work_of(spans) / (self.work_before[-1] or 1.0)

    def spans(self) -> list[BlockSpan]:
        """The blocks, in order and without gaps."""
        spans = self._repeated(self.flow.start, len(self.flow.order) - 1)
        if self.share(spans) < ENOUGH:
            flat = self._flat()
            if len(flat) > len(spans):
                spans = flat
        return _numbered(self._closed(sorted(spans, key=lambda span: span.first)))

    def finest(self, spans: list[BlockSpan]) -> list[BlockSpan]:
        """The same stretch of the network, with a block at every cut: layers with weights, and what follows them."""
        return _numbered(itertools.chain.from_iterable(map(self._parts, spans)))

    # By module ------------------------------------------------------------------------------------------------------

    def _module_calls(self) -> list[tuple[str, BlockSpan]]:
        """Every call of a module that could be a block and fills the graph from one cut to another, with its sort.

        A call is contiguous if as many of its operations lie in the order as its first and last are apart: operations
        of another module between them, or state that skips it, make it no block.
        """
        extents: dict[int, list[int]] = {}
        modules: dict[int, tuple[str, type]] = {}
        for i, node in enumerate(self.flow.order):
            stack = node.meta.get("nn_module_stack", {})
            for (path, kind), call in zip(stack.items(), node.meta.get("calls", ()), strict=False):
                extent = extents.setdefault(call, [i, i, 0])
                extent[1], extent[2] = i, extent[2] + 1
                modules[call] = path, kind
        calls = []
        for call, (first, last, count) in extents.items():
            path, kind = modules[call]
            is_whole = count == last - first + 1
            if self.tails and is_whole:
                first, last = self._with_tails(first, last, modules[call][0])
            fills = is_whole and first in self.begins and last in self.ends
            if fills and path and self._could_be_block(path, kind):
                calls.append((self._key(first, last, kind), BlockSpan(first, last, path, kind.__name__)))
        return calls

    def _with_tails(self, first: int, last: int, path: str) -> tuple[int, int]:
        """A module's call, and what its callers do without weights between it and the nearest cuts."""
        begin = max((begin for begin in self.begins if begin <= first), default=first)
        end = min((end for end in self.ends if end >= last), default=last)
        return first if self._has_work(begin, first - 1, path) else begin, (
            last if self._has_work(last + 1, end, path) else end
        )

    def _has_work(self, first: int, last: int, path: str) -> bool:
        """Whether a stretch beside a module's call has weights, or belongs to others than the module's callers."""
        return any(
            self.is_weighted(i) or not f"{path}.".startswith(f"{module_path(self.flow.order[i])}.".lstrip("."))
            for i in range(first, last + 1)
        )

    def is_weighted(self, position: int) -> bool:
        """Whether the operation at a position reads parameters."""
        return bool(weights_of(self.flow.order[position], self.module_of))

    def _could_be_block(self, path: str, kind: type) -> bool:
        """A module of the user's, or one of torch's that holds others; a single layer of torch's is none."""
        children = self.flow.capture.model.get_submodule(path).children()
        return not kind.__module__.startswith("torch.nn") or next(children, None) is not None

    def _key(self, first: int, last: int, kind: type) -> str:
        """Equal for calls that are blocks of one sort."""
        if kind in (nn.Sequential, nn.ModuleList):  # says nothing of what is inside
            return signatures(self.flow.order[first : last + 1], self.module_of)[0]
        return f"{kind.__module__}.{kind.__qualname__}"

    def _repeated(self, first: int, last: int) -> list[BlockSpan]:
        """The modules of the class that a person would name within a stretch, then those of what is left of it."""
        groups: dict[str, list[BlockSpan]] = {}
        for key, call in self.calls:
            if first <= call.first and call.last <= last:
                groups.setdefault(key, []).append(call)
        disjoint = {key: list(_outermost(calls)) for key, calls in groups.items()}
        amounts = {key: self._work_of(calls) for key, calls in disjoint.items() if len(calls) > 1}
        if not amounts or max(amounts.values()) < _WORTH_IT * self.work_before[-1]:
            return []
        comparable = [key for key in amounts if amounts[key] >= _COMPARABLE * max(amounts.values())]
        key = max(comparable, key=lambda key: (len(disjoint[key]), amounts[key]))
        spans = disjoint[key]
        edges = [first - 1, *(edge for span in spans for edge in (span.first, span.last)), last + 1]
        rest = [self._repeated(a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if a + 1 <= b - 1]
        return [*spans, *itertools.chain.from_iterable(rest)]

    # By layer -------------------------------------------------------------------------------------------------------

    def _flat(self) -> list[BlockSpan]:
        """Blocks that begin at each weighted layer between cuts, of the kind that does most of the work."""
        groups: list[_LayerGroup] = []
        for first, last in self._stretches():
            kind = self._weighted(first, last)
            if kind is not None or (groups and not (groups[-1].kind is not None and self._light(first, last))):
                groups.append(_LayerGroup(kind, first, last))
            elif groups:
                groups[-1].last = last
        amounts: dict[str, float] = {}
        for group in groups:
            if group.kind is not None:
                amounts[group.kind] = amounts.get(group.kind, 0.0) + self.amount(group.first, group.last)
        if not amounts:
            return []
        main = max(amounts, key=amounts.__getitem__)
        blocks = [group for group in groups if group.kind == main]
        if len(blocks) < 2:  # nothing repeats: every weighted layer is a block
            blocks = [group for group in groups if group.kind is not None]
        return [self._flat_span(group.first, group.last) for group in blocks]

    def _stretches(self) -> list[tuple[int, int]]:
        """(first, last) between neighbouring cuts."""
        begins = sorted(begin for begin in self.begins if begin >= self.flow.start)
        ends = sorted(end for end in self.ends if end >= self.flow.start)
        return [(begin, ends[i]) for begin in begins if (i := bisect.bisect_left(ends, begin)) < len(ends)]

    def _weighted(self, first: int, last: int) -> str | None:
        """The kind of the weighted layer (convolution, linear map) in a stretch, if it has one."""
        for node in self.flow.order[first : last + 1]:
            if any(weight.ndim > 1 for weight in weights_of(node, self.module_of)):
                return self._layer(node)
        return None

    def _light(self, first: int, last: int) -> bool:
        """Whether a stretch holds only what follows a layer: normalisation, activation, dropout, pooling."""
        return all(self._is_light(node) for node in self.flow.order[first : last + 1])

    def _is_light(self, node: fx.Node) -> bool:
        name = self._layer(node)
        pooling = "pool" in name.lower() and "adaptive" not in name.lower() and not _vanishes(node)
        return pooling or any(word.lower() in name.lower() for word in _LIGHT)

    def _layer(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.module_of(str(node.target))).__name__
        return str(getattr(node.target, "__name__", node.target))

    def _flat_span(self, first: int, last: int) -> BlockSpan:
        """A stretch named by its first layer, of the kind of its layers."""
        nodes = self.flow.order[first : last + 1]
        called, path = nodes[0].op == "call_module", module_path(nodes[0])
        name = str(nodes[0].target) if called else f"{path}.{nodes[0].name}".lstrip(".")
        return BlockSpan(first, last, name, "-".join(map(self._layer, nodes)))

    def _parts(self, span: BlockSpan) -> list[BlockSpan]:
        """Its stretches with weights, each with those without that follow it; itself where it has one alone."""
        weighted = [
            (first, last)
            for first, last in self._stretches()
            if span.first <= first and last <= span.last and self._weighted(first, last) is not None
        ]
        begins = [span.first, *(first for first, _ in weighted[1:])]
        ends = [*(begin - 1 for begin in begins[1:]), span.last]
        return list(map(self._part, begins, ends)) if len(begins) > 1 else [span]

    def _part(self, first: int, last: int) -> BlockSpan:
        """A stretch by the largest module that is called within it and has most of its weights, if there is one."""
        held: dict[tuple[str, str], int] = {}
        total = 0
        for node in self.flow.order[first : last + 1]:
            count = sum(weight.numel() for weight in weights_of(node, self.module_of))
            total += count
            for path, kind in node.meta.get("nn_module_stack", {}).items():
                held[path, kind.__name__] = held.get((path, kind.__name__), 0) + count
        for (path, kind), count in held.items():  # outer ones first
            if path and count > total / 2 and self._is_within(path, first, last):
                return BlockSpan(first, last, path, kind)
        return self._between(first, last)

    def _is_within(self, path: str, first: int, last: int) -> bool:
        """Whether nothing outside of a stretch, but within reach of its neighbours, is of a module."""
        outside = (self.flow.order[i] for i in (first - 1, last + 1) if 0 <= i < len(self.flow.order))
        return not any(path in node.meta.get("nn_module_stack", {}) for node in outside)

    # What lies between ----------------------------------------------------------------------------------------------

    def _closed(self, spans: list[BlockSpan]) -> Iterator[BlockSpan]:
        """The spans without gaps: light stretches join the block before, others become blocks."""
        for span, following in itertools.pairwise([*spans, None]):
            if span is None:
                return
            if following is None or following.first == span.last + 1:
                yield span
            elif self._weighted(span.last + 1, following.first - 1) is None:
                yield dataclasses.replace(span, last=following.first - 1)
            else:
                yield span
                yield self._between(span.last + 1, following.first - 1)

    def _between(self, first: int, last: int) -> BlockSpan:
        """A stretch between blocks as a block of its own, named by the innermost module around it."""
        stacks = [list(self.flow.order[i].meta.get("nn_module_stack", {})) for i in range(first, last + 1)]
        shared = [paths[0] for paths in zip(*stacks, strict=False) if len(set(paths)) == 1]
        inner = shared[-1] if shared else ""
        whole = (call for _, call in self.calls if (call.first, call.last, call.name) == (first, last, inner))
        return next(whole, None) or self._flat_span(first, last)


def _numbered(spans: Iterable[BlockSpan]) -> list[BlockSpan]:
    """Spans of names of their own: a module that is called repeatedly makes several blocks of one name."""
    counts: Counter[str] = Counter()
    return [dataclasses.replace(span, name=numbered(span.name, counts)) for span in spans]


def _outermost(calls: list[BlockSpan]) -> Iterator[BlockSpan]:
    """Of calls that contain one another, the outermost."""
    end = -1
    for call in sorted(calls, key=lambda call: (call.first, -call.last)):
        if call.first > end:
            end = call.last
            yield call


def _vanishes(node: fx.Node) -> bool:
    """Whether nothing is left of the map but one position."""
    value = main_value(node)
    shape = () if value is None else value.shape[2:]
    return len(shape) > 0 and all(size == 1 for size in shape)


def entry_of(flow: Flow) -> fx.Node | None:
    """The one tensor that the state begins at, where it can be an interface: the raw input, or what is made of it."""
    entering = {
        argument
        for node in flow.order
        for argument in node.all_input_nodes
        if flow.depends[argument].inputs and not flow.depends[argument].parameters
    }
    if len(entering) != 1:
        return None
    (node,) = entering
    value, other = node.meta.get("val"), node.meta.get("other")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim < 2:
        return None
    grows = other is None or flow.capture.fixed_batch or other.shape[0] == value.shape[0] + 1
    return node if grows and value.shape[0] == flow.capture.batch else None
