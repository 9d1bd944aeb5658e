"""SegmentedNetwork, runs of segments -> SegmentPartition: which rank owns which parts, what crosses between ranks.

The network's own graph, equation (3), says what each part reads. Segment j stands on one rank with its adapter C^j and
the coarse block F^{j-1} in front of it, the stem and the context on the first rank, the head on the last.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from pararealize.errors import DistributedError
from pararealize.plan.parts import Part
from pararealize.plan.plan import Plan
from pararealize.tracing.operations import as_captured
from pararealize.tracing.random_calls import draws

__all__ = [
    "Partition",
    "PartitionableNetwork",
    "SegmentPartition",
    "SegmentedNetwork",
    "SharedValue",
    "assign",
    "differentiable",
    "module_at",
    "part_names",
    "signature_of",
    "tensors_of",
]


# The attributes are declared for type checkers alone. A property that existed at run time would hide what a subclass
# keeps in its instances under that name, and a name more in the class would be one less for the user's own modules.


class PartitionableNetwork(nn.Module):
    """A network that is called part by part."""

    if TYPE_CHECKING:

        @property
        def parts(self) -> Mapping[str, Part]:
            """Every part by its name, in the order of the calls."""

        @property
        def pieces(self) -> Mapping[str, fx.Graph]:
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
        def devices(self) -> Sequence[torch.device] | None:
            """One for every segment where one process runs it on several, otherwise ``None``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SharedValue:
    """A value of the stem or of the context, made on the first rank; ``readers`` are the other ranks that read it."""

    name: str
    readers: tuple[int, ...]
    differentiable: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Which rank owns which parts of a network, and which values of its first part other ranks read.

    Attributes:
        runs: first and last segment, or interval of layers, (from 1) of each rank.
        signature: of the network's call.
        inputs: from the names in the signature to those that parts read.
        fixed: inputs that are no tensors, with the values that the network was captured with.
        parts: every part by its name.
        values: of the stem and the context, in the order in which they are sent.
    """

    runs: tuple[tuple[int, int], ...]
    signature: inspect.Signature
    inputs: Mapping[str, str]
    fixed: Mapping[str, Any]
    parts: Mapping[str, Part]
    values: tuple[SharedValue, ...]

    @property
    def ranks(self) -> int:
        """How many ranks."""
        return len(self.runs)

    def names(self, rank: int) -> tuple[str, ...]:
        """The parts that a rank owns."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPartition(Partition):
    """The segments of a parareal network, divided among ranks.

    Attributes:
        everywhere: whether each rank computes the context for itself: it reads no parameter, buffer or random number.
    """

    everywhere: bool

    @classmethod
    def of(cls, net: SegmentedNetwork, runs: Sequence[tuple[int, int]]) -> SegmentPartition:
        """Read the network's graph."""
        parts = net.parts
        everywhere = "context" in parts and _is_free(net, net.pieces["context"])
        readers: dict[str, set[int]] = {}
        for rank in range(len(runs)):
            for name in part_names(parts, runs, rank):
                for read in parts[name].reads:
                    readers.setdefault(read, set()).add(rank)
        values = []
        for maker in ("context", "stem"):
            if maker not in parts or (maker == "context" and everywhere):
                continue
            flags = differentiable(net, net.pieces[maker])
            for name, flag in zip(parts[maker].gives, flags, strict=True):
                others = tuple(sorted(readers.get(name, set()) - {0}))
                values.append(SharedValue(name=name, readers=others, differentiable=flag))
        fixed = {
            str(node.args[2]): node.args[1]
            for node in net.graph.nodes
            if node.op == "call_function" and node.target is as_captured
        }
        return cls(
            runs=tuple(runs),
            signature=signature_of(net.graph),
            inputs={str(node.target): node.name for node in net.graph.nodes if node.op == "placeholder"},
            fixed=fixed,
            parts=parts,
            values=tuple(values),
            everywhere=everywhere,
        )

    def names(self, rank: int) -> tuple[str, ...]:
        """The parts that a rank owns."""
        return part_names(self.parts, self.runs, rank, context=self.everywhere)


def part_names(
    parts: Mapping[str, Part], runs: Sequence[tuple[int, int]], rank: int, *, context: bool = False
) -> tuple[str, ...]:
    """Names of a rank's parts; of the first rank's the context too, and of any that reads it where asked for."""
    first, last = runs[rank]
    names = ["stem"] if rank == 0 else []
    for j in range(first, last + 1):
        names += [f"C{j}", f"g{j}", f"F{j - 1}"] if j > 1 else ["g1"]
    names += ["head"] if rank == len(runs) - 1 else []
    if "context" in parts:
        made = set(parts["context"].gives)
        if rank == 0 if not context else any(made.intersection(parts[name].reads) for name in names):
            names.insert(0, "context")
    return tuple(names)


def signature_of(graph: fx.Graph) -> inspect.Signature:
    """That of a call with the graph's inputs by name."""
    found = []
    for node in graph.nodes:
        if node.op == "placeholder":
            default = node.args[0] if node.args else inspect.Parameter.empty
            found.append(inspect.Parameter(str(node.target), inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    return inspect.Signature(found)


# Where segments stand ------------------------------------------------------------------------------------------------


def assign(plan: Plan, ranks: int, assignment: Sequence[int] | None = None) -> tuple[tuple[int, int], ...]:
    """First and last segment of each rank: consecutive runs with the smallest critical path.

    A rank computes the fine part of all its segments, waits for z, and then its coarse blocks, as in
    :attr:`Plan.critical_path`: ``t_1 = s_1 + c_1``, ``t_{r+1} = max(s_{r+1}, t_r) + c_{r+1}``.

    Args:
        plan: its costs.
        ranks: how many, from 1 to the number of segments.
        assignment: how many segments each rank takes, in order, in place of that.

    Raises:
        DistributedError: more ranks than segments, or an assignment that does not fit.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> plan = pararealize(resnet20(), n=4, coarse="linear").plan
        >>> assign(plan, 2), assign(plan, 2, [1, 3])
        (((1, 2), (3, 4)), ((1, 1), (2, 4)))
    """
    if ranks > plan.n:
        raise DistributedError(
            f"{ranks} ranks for n = {plan.n} segments: a segment is not split; start {plan.n} ranks, give the mesh a "
            f"dp dimension, or convert with n = {ranks} or more"
        )
    if assignment is not None:
        if len(assignment) != ranks or sum(assignment) != plan.n or min(assignment) < 1:
            raise DistributedError(
                f"assignment is {list(assignment)!r}; pass how many of the {plan.n} segments each of the {ranks} ranks "
                "takes, at least one each"
            )
        ends = list(itertools.accumulate(assignment))
        return tuple((end - count + 1, end) for end, count in zip(ends, assignment, strict=True))
    extra = [0.0, *(row.cost for row in plan.adapters)]
    fine = list(itertools.accumulate((s.cost + e for s, e in zip(plan.segments, extra, strict=True)), initial=0.0))
    coarse = list(itertools.accumulate((0.0, *(row.cost for row in plan.coarse_blocks)), initial=0.0))
    time = {b: fine[b] + coarse[b] for b in range(1, plan.n + 1)}  # one rank with segments 1 to b
    begins: list[dict[int, int]] = []
    for rank in range(2, ranks + 1):
        best = {
            b: min((max(fine[b] - fine[a], time[a]) + coarse[b] - coarse[a], a) for a in range(rank - 1, b))
            for b in range(rank, plan.n + 1)
        }
        time, begin = {b: value for b, (value, _) in best.items()}, {b: a for b, (_, a) in best.items()}
        begins.append(begin)
    ends = [plan.n]
    for begin in reversed(begins):
        ends.append(begin[ends[-1]])
    ends = [0, *reversed(ends)]
    return tuple((a + 1, b) for a, b in itertools.pairwise(ends))


# What parts hold -----------------------------------------------------------------------------------------------------


def module_at(tree: nn.Module, path: str) -> nn.Module:
    """The submodule of that name among those that are registered; attributes of the same name do not count."""
    for name in path.split(".") if path else ():
        child = tree._modules[name]
        assert child is not None
        tree = child
    return tree


def tensors_of(net: PartitionableNetwork, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a part uses of the network's tree, by qualified name: modules that it calls, attributes that it reads."""
    if name[0] in "CF" and name[1:].isdigit():
        path = f"{'adapters' if name[0] == 'C' else 'coarse'}.{name}"
        return ((path,), ()) if name in module_at(net, path.partition(".")[0])._modules else ((), ())
    nodes = list(net.pieces[name].nodes)
    calls = dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module")
    attributes = dict.fromkeys(str(node.target) for node in nodes if node.op == "get_attr")
    return tuple(calls), tuple(attributes)


def _tensor(net: nn.Module, path: str) -> torch.Tensor | None:
    owner_path, _, name = path.rpartition(".")
    owner = module_at(net, owner_path)
    return owner._parameters.get(name, owner._buffers.get(name))


def _is_free(net: nn.Module, graph: fx.Graph) -> bool:
    """Whether a piece reads no parameters, buffers or random numbers."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = module_at(net, str(node.target))
            if any(True for _ in itertools.chain(module.parameters(), module.buffers())):
                return False
        if node.op == "get_attr" and _tensor(net, str(node.target)) is not None:
            return False
        if draws(node, lambda path: module_at(net, path)):
            return False
    return True


def differentiable(net: nn.Module, graph: fx.Graph) -> list[bool]:
    """For each output of a piece, whether parameters took part in it."""
    trained: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        trained[node] = any(trained[argument] for argument in node.all_input_nodes)
        if node.op == "call_module":
            trained[node] |= any(True for _ in module_at(net, str(node.target)).parameters())
        elif node.op == "get_attr":
            trained[node] |= isinstance(_tensor(net, str(node.target)), nn.Parameter)
    output = graph.output_node().args[0]
    outputs: Iterable[Any] = output if isinstance(output, list | tuple) else (output,)
    return [trained[node] for node in outputs]
