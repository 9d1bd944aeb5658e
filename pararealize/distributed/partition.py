"""SegmentedNetwork, runs of segments -> SegmentPartition: which rank owns which parts, what crosses between ranks.

The network's own graph, equation (3), says what each part reads. A rank owns consecutive segments of every window,
each with its adapter C^j, the correction K^j of its output and the coarse block F^{j-1} in front of it; the first rank
owns the stem and the context too, the last one the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from pararealize.plan.parts import Part
from pararealize.plan.plan import Plan
from pararealize.plan.window_ranks import WindowRanks, ranks_of_windows
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.conditions import CallConditions
from pararealize.tracing.random_calls import draws

from .messages.message_order import message_tags

__all__ = [
    "Partition",
    "PartitionableNetwork",
    "SegmentPartition",
    "SegmentedNetwork",
    "SharedValue",
    "TensorPaths",
    "differentiable_outputs",
    "module_at",
    "tensor_at",
    "tensors_of",
]


# The attributes are declared for type checkers alone. A property that existed at run time would hide what a subclass
# keeps in its instances under that name, and a name more in the class would be one less for the user's own modules.


class PartitionableNetwork(nn.Module):
    """A network that is called part by part."""

    if TYPE_CHECKING:

        @property
        def network_parts(self) -> Mapping[str, Part]:
            """Every part by its name, in the order of the calls."""

        @property
        def part_graphs(self) -> Mapping[str, fx.Graph]:
            """The graphs of the parts that are cut out of the original; adapters and coarse blocks have none."""


class SegmentedNetwork(PartitionableNetwork):
    """A parareal network: its adapters are submodules under ``adapters``, its coarse blocks under ``coarse``."""

    if TYPE_CHECKING:

        @property
        def plan(self) -> Plan:
            """Where it was cut."""

        @property
        def graph(self) -> fx.Graph:
            """Equation (3): the calls of all parts."""

        @property
        def call_conditions(self) -> CallConditions:
            """How it is called, and with inputs of which sizes."""

        @property
        def segment_devices(self) -> Sequence[torch.device] | None:
            """One for every segment where one process runs it on several, otherwise ``None``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SharedValue:
    """A value of the stem or of the context, computed on the first rank and read on others, too.

    Attributes:
        name: in the network's graph.
        readers: the ranks that read it, without the first.
        differentiable: whether parameters took part in it, so that its gradients go back.
    """

    name: str
    readers: tuple[int, ...]
    differentiable: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Which rank owns which parts of a network, and which values of the first rank's others read.

    Attributes:
        runs: first and last segment of a window with n of them, or interval of layers, (from 1) of each rank.
        labels: what to call each rank in errors, such as ``"1 (segments 3 to 4, layer2.0 to layer2.3)"``.
        conditions: how the network is called, and with inputs of which sizes.
        inputs: from the names of the tensors in a call to those that parts read.
        parts: every part by its name.
        owned: the names of each rank's parts.
        values: of the stem and the context, in the order in which they are sent.
        tags: of the messages between ranks, by what they carry.
    """

    runs: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]
    conditions: CallConditions
    inputs: Mapping[str, str]
    parts: Mapping[str, Part]
    owned: tuple[tuple[str, ...], ...]
    values: tuple[SharedValue, ...]
    tags: Mapping[str, int]

    @property
    def ranks(self) -> int:
        """How many ranks."""
        return len(self.runs)

    def parts_of(self, rank: int) -> tuple[Part, ...]:
        """The parts that a rank owns."""
        return tuple(self.parts[name] for name in self.owned[rank])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPartition(Partition):
    """The segments of a parareal network, divided among ranks.

    Attributes:
        windows: which rank has which segments of each window, and passes what to whom.
        source: what adapters of the first window read, ``"input"`` or ``"stem"``.
        everywhere: whether each rank computes the context for itself: it reads no parameter, buffer or random number.
    """

    windows: tuple[WindowRanks, ...]
    source: str
    everywhere: bool

    @classmethod
    def of(
        cls, net: SegmentedNetwork, runs: Sequence[tuple[int, int]], windows: Sequence[WindowRanks] | None = None
    ) -> SegmentPartition:
        """Read the network's graph.

        Args:
            net: the network.
            runs: first and last segment of each rank, of a window with n of them.
            windows: what each rank passes to whom; z to the next rank, in a row, where they are left out.
        """
        parts, plan = net.network_parts, net.plan
        everywhere = "context" in parts and _computes_anywhere(net, parts["context"])
        readers: dict[str, set[int]] = {}
        for rank in range(len(runs)):
            for part in _parts_of(parts, runs, rank):
                for name in part.reads:
                    readers.setdefault(name, set()).add(rank)
        values = []
        for maker in ("context", "stem"):
            if maker not in parts or (maker == "context" and everywhere):
                continue
            flags = differentiable_outputs(net, net.part_graphs[maker])
            for name, flag in zip(parts[maker].gives, flags, strict=True):
                others = tuple(sorted(readers.get(name, set()) - {0}))
                values.append(SharedValue(name=name, readers=others, differentiable=flag))
        windows = ranks_of_windows(plan.windows, runs) if windows is None else tuple(windows)
        between = [window.value(letter, j) for window in windows for j in range(1, window.n + 1) for letter in "zs"]
        return cls(
            runs=tuple(runs),
            labels=tuple(_label(plan, rank, run) for rank, run in enumerate(runs)),
            conditions=net.call_conditions,
            inputs={name: node.name for name, node in CallSignature.tensor_nodes(net.graph).items()},
            parts=parts,
            owned=tuple(
                tuple(part.name for part in _parts_of(parts, runs, rank, context_everywhere=everywhere))
                for rank in range(len(runs))
            ),
            values=tuple(values),
            tags=message_tags(
                [value.name for value in values] + between + [f"w_{window.m}" for window in windows[:-1]]
            ),
            windows=windows,
            source=plan.source,
            everywhere=everywhere,
        )

    @property
    def n(self) -> int:
        """How many segments the longest window has."""
        return self.runs[-1][1]

    @property
    def cuts_stem(self) -> bool:
        """Whether others than g^1 read what the stem gives, so that its graph ends there."""
        return self.source == "stem" or len(self.parts["stem"].gives) > 1


def _label(plan: Plan, rank: int, run: tuple[int, int]) -> str:
    """What to call a rank in errors."""
    first, last = run
    which = f"segment {first}" if first == last else f"segments {first} to {last}"
    if len(plan.windows) > 1:
        return f"{rank} ({which} of {len(plan.windows)} windows)"
    return f"{rank} ({which}, {plan.segments[first - 1].first_block} to {plan.segments[last - 1].last_block})"


def _parts_of(
    parts: Mapping[str, Part], runs: Sequence[tuple[int, int]], rank: int, *, context_everywhere: bool = False
) -> list[Part]:
    """A rank's parts, segment after segment; the context on the first rank, or on all that read it."""
    first, last = runs[rank]
    owned = [part for part in parts.values() if part.kind != "context" and first <= part.home <= last]
    context = parts.get("context")
    if context is not None:
        reads_it = any(set(context.gives).intersection(part.reads) for part in owned)
        if reads_it if context_everywhere else rank == 0:
            owned.insert(0, context)
    return sorted(owned, key=lambda part: part.home)  # stable: within a segment in the order of the calls


# What parts read -----------------------------------------------------------------------------------------------------


def module_at(tree: nn.Module, path: str) -> nn.Module:
    """The submodule of that name among those that are registered; attributes of the same name do not count."""
    for name in path.split(".") if path else ():
        child = tree._modules[name]
        assert child is not None
        tree = child
    return tree


def tensor_at(tree: nn.Module, path: str) -> torch.Tensor | None:
    """The parameter or buffer of that name, where there is one."""
    owner_path, _, name = path.rpartition(".")
    owner = module_at(tree, owner_path)
    return owner._parameters.get(name, owner._buffers.get(name))


@dataclasses.dataclass(frozen=True, slots=True)
class TensorPaths:
    """What a part uses of a network's tree, by qualified names.

    Attributes:
        modules: those that it calls, and all tensors in them.
        attributes: single tensors that it reads.
    """

    modules: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def tensors(self, tree: nn.Module) -> Iterator[torch.Tensor]:
        """All parameters and buffers of these in a tree."""
        for path in self.modules:
            module = module_at(tree, path)
            yield from module.parameters()
            yield from module.buffers()
        for path in self.attributes:
            tensor = tensor_at(tree, path)
            if tensor is not None:
                yield tensor


def tensors_of(net: PartitionableNetwork, part: Part) -> TensorPaths:
    """What a part uses of the network's tree; nothing where it is a coarse block that is a segment itself."""
    if part.is_segment_itself:
        return TensorPaths()
    if part.kind in ("adapter", "coarse", "correction"):
        return TensorPaths(modules=(part.target,))
    nodes = list(net.part_graphs[part.name].nodes)
    modules = dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module")
    attributes = dict.fromkeys(str(node.target) for node in nodes if node.op == "get_attr")
    return TensorPaths(tuple(modules), tuple(attributes))


def _computes_anywhere(net: PartitionableNetwork, part: Part) -> bool:
    """Whether a part that is cut out of the original reads no parameters, buffers or random numbers."""
    reads = any(True for _ in tensors_of(net, part).tensors(net))
    return not reads and not any(draws(node, partial(module_at, net)) for node in net.part_graphs[part.name].nodes)


def differentiable_outputs(net: nn.Module, graph: fx.Graph) -> list[bool]:
    """For each output of a piece, whether parameters took part in it."""
    trained: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        trained[node] = any(trained[argument] for argument in node.all_input_nodes)
        if node.op == "call_module":
            trained[node] |= any(True for _ in module_at(net, str(node.target)).parameters())
        elif node.op == "get_attr":
            trained[node] |= isinstance(tensor_at(net, str(node.target)), nn.Parameter)
    output = graph.output_node().args[0]
    outputs: Iterable[Any] = output if isinstance(output, list | tuple) else (output,)
    return [trained[node] for node in outputs]
