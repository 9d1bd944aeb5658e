"""Flow -> runs of operations that are blocks: by module and, failing that, by layer."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import fx, nn

from .flow import Flow
from .signature import signatures, work

__all__ = ["ENOUGH", "Finder", "Run", "entry_of", "share_of"]

ENOUGH = 0.35  # of all work must lie in modules of one class for them to be the blocks
_COMPARABLE = 0.7  # of the best class's work, for a class with more instances to be preferred
_WORTH_IT = 0.05  # of all work, for a run before or after the main one to be blocks and not stem or head
_LIGHT = ("Norm", "ReLU", "ELU", "GELU", "SiLU", "Sigmoid", "Tanh", "Hardswish", "Mish", "Dropout", "Identity")


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Positions ``first`` to ``last`` of the order: one block."""

    first: int
    last: int
    name: str
    kind: str


def share_of(flow: Flow, runs: list[Run]) -> float:
    """How much of all work lies within the runs, from 0 to 1."""
    module_of = flow.capture.graph_module.get_submodule
    total = sum(work(node, module_of) for node in flow.order)
    inside = sum(work(node, module_of) for run in runs for node in flow.order[run.first : run.last + 1])
    return inside / total if total else 0.0


class Finder:
    """Looks for runs of operations that are blocks, by module and, failing that, by layer."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.module_of: Callable[[str], nn.Module] = flow.capture.graph_module.get_submodule
        self.work = [work(node, self.module_of) for node in flow.order]
        self.before = [0.0, *itertools.accumulate(self.work)]
        self.ends = set(flow.cuts)
        self.begins = {0 if _one_input(flow) else -1} | {cut + 1 for cut in flow.cuts if cut >= flow.start}
        self.modules = self._filling_modules()

    def amount(self, first: int, last: int) -> float:
        """The work between two positions, both included."""
        return self.before[last + 1] - self.before[first]

    def runs(self) -> list[Run]:
        """The blocks, in order and without gaps."""
        last = len(self.flow.order) - 1
        found = self._repeated(self.flow.start, last)
        if sum(self.amount(run.first, run.last) for run in found) < ENOUGH * self.before[-1]:
            flat = self._flat()
            if len(flat) > len(found):
                found = flat
        return self._unique(self._closed(sorted(found, key=lambda run: run.first)))

    # By module ------------------------------------------------------------------------------------------------------

    def _filling_modules(self) -> list[tuple[int, int, str, str]]:
        """(first, last, path, key) of every module call whose operations lie exactly between two cuts."""
        spans: dict[int, list[int]] = {}
        about: dict[int, tuple[str, type]] = {}
        for i, node in enumerate(self.flow.order):
            stack = node.meta.get("nn_module_stack", {})
            for (path, kind), call in zip(stack.items(), node.meta.get("calls", ()), strict=False):
                span = spans.setdefault(call, [i, i, 0])
                span[1], span[2] = i, span[2] + 1
                about[call] = (path, kind)
        return [
            (first, last, about[call][0], self._key(first, last, about[call][1]))
            for call, (first, last, count) in spans.items()
            if count == last - first + 1
            and about[call][0]
            and first in self.begins
            and last in self.ends
            and self._is_block_like(about[call][0], about[call][1])
        ]

    def _is_block_like(self, path: str, kind: type) -> bool:
        return not kind.__module__.startswith("torch.nn") or next(self._original(path).children(), None) is not None

    def _original(self, path: str) -> nn.Module:
        return self.flow.capture.model.get_submodule(path)

    def _key(self, first: int, last: int, kind: type) -> str:
        if kind in (nn.Sequential, nn.ModuleList):  # says nothing of what is inside
            return signatures(self.flow.order[first : last + 1], self.module_of)[0]
        return f"{kind.__module__}.{kind.__qualname__}"

    def _repeated(self, first: int, last: int) -> list[Run]:
        """The modules of the class that a person would name within a stretch, then those of the rest."""
        groups: dict[str, list[tuple[int, int, str]]] = {}
        for begin, end, path, key in self.modules:
            if first <= begin and end <= last:
                groups.setdefault(key, []).append((begin, end, path))
        disjoint = {key: list(_disjoint(spans)) for key, spans in groups.items()}
        covered = {
            key: sum(self.amount(b, e) for b, e, _ in spans) for key, spans in disjoint.items() if len(spans) > 1
        }
        if not covered or max(covered.values()) < _WORTH_IT * self.before[-1]:
            return []
        best = max(covered.values())
        key = max(
            (k for k in covered if covered[k] >= _COMPARABLE * best), key=lambda k: (len(disjoint[k]), covered[k])
        )
        chosen = [Run(b, e, path, self._kind(path)) for b, e, path in disjoint[key]]
        edges = [first - 1, *(edge for run in chosen for edge in (run.first, run.last)), last + 1]
        rest = [self._repeated(a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if a + 1 <= b - 1]
        return [*chosen, *itertools.chain.from_iterable(rest)]

    def _kind(self, path: str) -> str:
        return type(self._original(path)).__name__

    # By layer -------------------------------------------------------------------------------------------------------

    def _flat(self) -> list[Run]:
        """Blocks that begin at each weighted layer between cuts, of the kind that does most of the work."""
        atoms = self._atoms()
        groups: list[tuple[str, list[tuple[int, int]]]] = []
        open_for_more = False
        for atom in atoms:
            heavy = self._weighted(*atom)
            if heavy is not None:
                groups.append((heavy, [atom]))
                open_for_more = True
            elif groups and open_for_more and self._light(*atom):
                groups[-1][1].append(atom)
            elif groups:
                open_for_more = False
                groups.append(("", [atom]))
        amounts: dict[str, float] = {}
        for heavy, spans in groups:
            amounts[heavy] = amounts.get(heavy, 0.0) + self.amount(spans[0][0], spans[-1][1])
        amounts.pop("", None)
        if not amounts:
            return []
        main = max(amounts, key=lambda heavy: amounts[heavy])
        chosen = [spans for heavy, spans in groups if heavy == main]
        if len(chosen) < 2:  # nothing repeats: every weighted layer is a block
            chosen = [spans for heavy, spans in groups if heavy]
        return [Run(s[0][0], s[-1][1], self._layer_name(s[0][0]), self._layers(s)) for s in chosen]

    def _atoms(self) -> list[tuple[int, int]]:
        """Stretches between neighbouring cuts."""
        begins = sorted(begin for begin in self.begins if begin >= self.flow.start)
        ends = sorted(end for end in self.ends if end >= self.flow.start)
        return [(begin, ends[i]) for begin in begins if (i := bisect.bisect_left(ends, begin)) < len(ends)]

    def _weighted(self, first: int, last: int) -> str | None:
        """The kind of the weighted layer (convolution, linear map) in a stretch, if it has one."""
        for node in self.flow.order[first : last + 1]:
            if node.op == "call_module":
                module = self.module_of(str(node.target))
                if any(parameter.ndim > 1 for parameter in module.parameters()):
                    return type(module).__name__
            elif any(
                a.op == "get_attr" and a.meta.get("trainable") and a.meta["val"].ndim > 1 for a in node.all_input_nodes
            ):
                return str(getattr(node.target, "__name__", node.target))
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

    def _layers(self, spans: list[tuple[int, int]]) -> str:
        return "-".join(self._layer(node) for first, last in spans for node in self.flow.order[first : last + 1])

    def _layer_name(self, position: int) -> str:
        node = self.flow.order[position]
        if node.op == "call_module":
            return str(node.target)
        path = list(node.meta.get("nn_module_stack", {"": None}))[-1]
        return f"{path}.{node.name}" if path else node.name

    # What lies between ----------------------------------------------------------------------------------------------

    def _closed(self, runs: list[Run]) -> Iterator[Run]:
        """The runs without gaps: light stretches join the block before, others become blocks."""
        for run, following in itertools.pairwise([*runs, None]):
            if run is None:
                return
            if following is None or following.first == run.last + 1:
                yield run
            elif self._weighted(run.last + 1, following.first - 1) is None:
                yield dataclasses.replace(run, last=following.first - 1)
            else:
                yield run
                yield self._between(run.last + 1, following.first - 1)

    def _between(self, first: int, last: int) -> Run:
        """A stretch between blocks as a block of its own, named by the innermost module around it."""
        stacks = [list(self.flow.order[i].meta.get("nn_module_stack", {})) for i in range(first, last + 1)]
        shared = [paths[0] for paths in zip(*stacks, strict=False) if len(set(paths)) == 1]
        inner = shared[-1] if shared else ""
        whole = any(path == inner and (b, e) == (first, last) for b, e, path, _ in self.modules)
        name = inner if whole else self._layer_name(first)
        return Run(first, last, name, self._kind(inner) if whole else self._layers([(first, last)]))

    def _unique(self, runs: Iterator[Run]) -> list[Run]:
        """A module that is called repeatedly makes several blocks of one name: number them."""
        seen: dict[str, int] = {}
        named = []
        for run in runs:
            seen[run.name] = seen.get(run.name, 0) + 1
            again = seen[run.name]
            named.append(run if again == 1 else dataclasses.replace(run, name=f"{run.name}#{again}"))
        return named


def _disjoint(spans: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Of spans that contain one another, the outermost."""
    end = -1
    for span in sorted(spans, key=lambda s: (s[0], -s[1])):
        if span[0] > end:
            end = span[1]
            yield span


def _vanishes(node: fx.Node) -> bool:
    """Whether nothing is left of the map but one position."""
    shape = node.meta["val"].shape[2:]
    return len(shape) > 0 and all(size == 1 for size in shape)


def _one_input(flow: Flow) -> bool:
    """Whether the state begins at one tensor that could be an interface, so that the first block may read it."""
    return flow.start == 0 and entry_of(flow) is not None


def entry_of(flow: Flow) -> fx.Node | None:
    """The one tensor that the state begins at, where it can be an interface: the raw input, or what is made of it."""
    entering = {
        argument
        for node in flow.order
        for argument in node.all_input_nodes
        if flow.depends[argument][0] and not flow.depends[argument][1]
    }
    if len(entering) != 1:
        return None
    (node,) = entering
    value, other = node.meta.get("val"), node.meta.get("other")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim < 2:
        return None
    grown = other is None or flow.capture.fixed_batch or other.shape[0] == value.shape[0] + 1
    return node if grown and value.shape[0] == flow.capture.batch else None
