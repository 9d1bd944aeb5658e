"""Capture -> BlockChain: the stem, the repeated blocks that a person would name, and the head.

Blocks fill the graph from cut to cut. The module hierarchy names them: modules whose operations lie exactly between two
cuts are grouped by class; among the classes that do most of the work, the one with the most instances is the block.
What lies between such blocks (patch merging, transition layers) is treated alike, or becomes one block. A flat network,
whose layers stand side by side in one container, is split before each weighted layer instead:

    stem │ block │ block │ transition │ block │ … │ head          │ = cut: one activation is alive
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_args

import torch
from torch import fx, nn

from pararealize.argument_types import typed_arguments
from pararealize.errors import CutError
from pararealize.table import shortened
from pararealize.tracing.captured import Capture
from pararealize.tracing.extraction import subgraph
from pararealize.tracing.layouts import lay_out
from pararealize.tracing.model_twin import real_twin
from pararealize.tracing.module_view import Piece

from .context import context_of, count_parameters, shared_values
from .finder import ENOUGH, BlockFinder, BlockSpan, Granularity, entry_of
from .flow import Flow, RefusedCut, flow_of
from .packing import Pack, pack_of, packings
from .signature import isomorphic, signatures
from .space import Space, space_of

__all__ = ["GRANULARITIES", "KIND_WIDTH", "Block", "BlockChain", "find_blocks", "runs", "why_no_more"]

K = TypeVar("K")
T = TypeVar("T")
KIND_WIDTH = 24  # characters of the kind of a block that is named by its layers, where it is printed
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
_FEW = 4  # blocks: with fewer, values that are read throughout are tried as context
_LARGE = 0.5  # of all work outside of the blocks and in the largest of them: likewise
_MUCH_LESS = 0.7  # of such work, for several values to be packed into one tensor between blocks


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of the network between two cuts.

    Attributes:
        name: the qualified name that a person would use.
        kind: its module's class, or its layers' classes.
        nodes: its operations, in execution order.
        input: the one activation that enters.
        output: the one activation that leaves.
        context: values it reads besides (masks, position tables).
        x: the space of the input.
        y: the space of the output.
        signature: equal for blocks of one structure.
        exact_signature: equal for interchangeable blocks.
        parameters: the number of parameters that it reads.
    """

    name: str
    kind: str
    nodes: tuple[fx.Node, ...]
    input: fx.Node
    output: fx.Node
    context: tuple[fx.Node, ...]
    x: Space
    y: Space
    signature: str
    exact_signature: str
    parameters: int

    def __str__(self) -> str:
        return f"{self.name} {shortened(self.kind, KIND_WIDTH)}: {self.x} → {self.y}, {self.parameters:,} parameters"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockChain:
    """A network as stem, blocks and head.

    Attributes:
        capture: where it comes from.
        flow: the state in execution order, with its cut points.
        source: the space of the raw input, where that is one floating-point tensor; otherwise ``None``.
        stem: what comes before the first block; may be empty.
        blocks: the chain.
        head: what comes after the last block; may be empty.
        granularity: what the blocks are: see :func:`find_blocks`.
        is_on_twin: whether the model is a twin of the user's.
        memory: what was worked out of the chain, where it remembers; copies of other batch sizes share it.
    """

    capture: Capture
    flow: Flow
    source: Space | None
    stem: Block
    blocks: tuple[Block, ...]
    head: Block
    granularity: Granularity = "repeated"
    is_on_twin: bool = False
    memory: dict[Hashable, Any] | None = dataclasses.field(default=None, repr=False, compare=False)

    def remembering(self) -> BlockChain:
        """The same chain, which works things out once: for many plans of a model that stays as it is."""
        return dataclasses.replace(self, memory={})

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """A value of the chain: worked out now, or the first time where the chain remembers."""
        if self.memory is None:
            return compute()
        if key not in self.memory:
            self.memory[key] = compute()
        value: T = self.memory[key]
        return value

    def on_twin(self) -> BlockChain:
        """The same chain over a twin of the model, which may be run: another thread may be using the model itself."""
        if self.is_on_twin:
            return self
        twin, _ = real_twin(self.capture.model, share_parameters=True)
        return dataclasses.replace(self, capture=dataclasses.replace(self.capture, model=twin), is_on_twin=True)

    @property
    def refused(self) -> tuple[RefusedCut, ...]:
        """Every point at which the network cannot be cut, and why."""
        return tuple(self.flow.refused())

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """Maximal runs (first, last) of blocks whose outputs have one shape."""
        return tuple((first, last) for _, first, last in runs(block.y.shape for block in self.blocks))

    def for_each_block(self, compute: Callable[[Block], T]) -> tuple[T, ...]:
        """A value for every block, computed once for those that are interchangeable."""
        values: dict[str, T] = {}
        for block in self.blocks:
            if block.exact_signature not in values:
                values[block.exact_signature] = compute(block)
        return tuple(values[block.exact_signature] for block in self.blocks)

    def module(self, first: int, last: int) -> Piece:
        """Blocks ``first`` to ``last`` (both included, from 0) as one module over the model's own parameters.

        It is called as ``module(x, *context)`` with the context of :meth:`context`.
        """
        inputs = (self.blocks[first].input, *self.context(first, last))
        return self._piece(inputs, self.blocks[last].output)

    def context(self, first: int, last: int) -> tuple[fx.Node, ...]:
        """What the blocks of a run read besides their input, without repetition."""
        return tuple(dict.fromkeys(node for block in self.blocks[first : last + 1] for node in block.context))

    def piece(self, block: Block) -> Piece:
        """Any one block, or the head, as a module; the stem as a module of the network's own inputs."""
        if block is self.stem:
            return self._piece(tuple(self.capture.graph.find_nodes(op="placeholder")), block.output)
        return self._piece((block.input, *block.context), block.output)

    def _piece(self, inputs: tuple[fx.Node, ...], output: fx.Node) -> Piece:
        graph = subgraph(inputs, output)
        if inputs[0].op != "placeholder":
            lay_out(graph)
        return Piece(self.capture.model, graph, "Piece", self.capture.constants)

    @property
    def packs(self) -> tuple[Pack, ...]:
        """The interfaces that are several values side by side, in order."""
        ends = (self.blocks[0].input, *(block.output for block in self.blocks))
        return tuple(pack for node in ends if (pack := pack_of(node)) is not None)

    def __str__(self) -> str:
        kinds = [(kind, len(list(group))) for kind, group in itertools.groupby(block.kind for block in self.blocks)]
        if self.granularity == "finest":  # which take turns
            kinds = list(Counter(block.kind for block in self.blocks).items())
        runs = ", ".join(f"{shortened(kind, KIND_WIDTH)} × {number}" for kind, number in kinds)
        most = max((len(pack.names) for pack in self.packs), default=1)
        packed = f", {most} values as one tensor between them" if most > 1 else ""
        return f"{type(self.capture.model).__name__}: {len(self.blocks)} blocks ({runs}){packed}"


def runs(keys: Iterable[K]) -> Iterator[tuple[K, int, int]]:
    """Maximal runs of equal keys, each with its (first, last) position."""
    last = -1
    for key, group in itertools.groupby(keys):
        first, last = last + 1, last + len(list(group))
        yield key, first, last


@typed_arguments(CutError)
def find_blocks(capture: Capture, *, granularity: Granularity = "repeated") -> BlockChain:
    """Cut a captured network into stem, blocks and head.

    Args:
        capture: the network.
        granularity: ``"repeated"`` for the repeated blocks that a person would name; ``"finest"`` to cut each of them
            wherever one activation is alive within it, such as a transformer's layer between attention and MLP.
            Stem and head are the same.

    Raises:
        CutError: fewer than one block lies between cuts, and the message says which tensors are alive and where; or
            there is no such granularity.

    Example:
        >>> import torch
        >>> from pararealize import capture
        >>> from pararealize.models import resnet20
        >>> chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
        >>> print(chain)
        PreActResNet: 9 blocks (PreActBasic × 9)
        >>> print(chain.blocks[3])
        stage2.0 PreActBasic: 16×32×32 → 32×16×16, 14,432 parameters
        >>> chain.module(0, 2)(torch.randn(5, 16, 32, 32)).shape
        torch.Size([5, 16, 32, 32])
    """
    finder = BlockFinder(flow_of(capture))
    spans = finder.spans()
    few = len(spans) < _FEW or finder.share(spans) < ENOUGH
    if few or _sequential(finder, spans) > _LARGE:
        # A value that is read throughout is alive at every point, so that none is a cut, unless it is taken as context;
        # so is one that a skip carries past all of them (SRGAN, U-Net), which leaves one block with everything between.
        wider = BlockFinder(flow_of(capture, broadcast=True))
        others = wider.spans() if wider.flow.cuts else []
        better = len(others) > len(spans) if few else _sequential(wider, others) < _sequential(finder, spans)
        if better and wider.share(others) > ENOUGH:
            finder, spans = wider, others
    if len(spans) < 2 or _sequential(finder, spans) > _LARGE:
        for packed, others in packings(capture):
            if _sequential(packed, others) < _MUCH_LESS * _sequential(finder, spans):
                finder, spans = packed, others
                if _sequential(finder, spans) <= _LARGE:
                    break  # more values in an interface make it larger
    flow = finder.flow
    if not flow.order:
        raise CutError(
            f"nothing that {type(capture.model).__name__} returns is computed from its inputs by its parameters, so "
            "that there is nothing to cut; let the forward return what its layers give"
        )
    if not spans:
        raise CutError(
            f"no blocks between cut points: {why_no_more(flow)}. Convert a part of the model that is a chain, or pass "
            "leaf_modules=[...] with the classes that hold the long skips"
        )
    if granularity == "finest":
        spans = finder.finest(spans)
    return dataclasses.replace(_chain(flow, spans), granularity=granularity)


def _sequential(finder: BlockFinder, spans: list[BlockSpan]) -> float:
    """The share of all work that no number of segments shortens: what is in no block, and the largest of them."""
    return 1 - finder.share(spans) + max((finder.share([span]) for span in spans), default=0.0)


class _Interface(NamedTuple):
    """The one activation between two parts of a network, and its space."""

    node: fx.Node
    space: Space


def _chain(flow: Flow, spans: list[BlockSpan]) -> BlockChain:
    module_of = flow.capture.graph_module.get_submodule
    block_of = partial(_block, flow, shared_values(flow, spans))
    entry = entry_of(flow) if spans[0].first == 0 else _alive_after(flow, spans[0].first - 1)
    assert entry is not None
    begin = end = _Interface(entry, space_of(entry, module_of))
    representatives: dict[str, tuple[fx.Node, ...]] = {}
    blocks: list[Block] = []
    for span in spans:
        nodes, node = flow.order[span.first : span.last + 1], _alive_after(flow, span.last)
        before, end = end, _Interface(node, space_of(node, module_of))
        block = block_of(span.name, span.kind, nodes, (before, end), reading=nodes)
        signature = _canonical(block, representatives, module_of)
        blocks.append(dataclasses.replace(block, signature=signature))
    output = flow.capture.graph.output_node()
    front, rest = flow.order[: spans[0].first], flow.order[spans[-1].last + 1 :]
    return BlockChain(
        capture=flow.capture,
        flow=flow,
        source=_source(flow),
        stem=block_of("stem", "stem", front, (begin, begin), reading=()),
        blocks=tuple(blocks),
        head=block_of("head", "head", rest, (end, _Interface(output, end.space)), reading=(*rest, output)),
    )


def _alive_after(flow: Flow, position: int) -> fx.Node:
    """The one activation that is alive after a position; the last of all where nothing follows."""
    for i in range(position, -1, -1):
        node = flow.order[i]
        if node not in flow.broadcast and flow.last_read[i] > position:
            return node
    return flow.order[position]


def _block(
    flow: Flow,
    shared: frozenset[fx.Node],
    name: str,
    kind: str,
    nodes: tuple[fx.Node, ...],
    ends: tuple[_Interface, _Interface],
    *,
    reading: tuple[fx.Node, ...],
) -> Block:
    """The block of these nodes between two interfaces; its context is what ``reading`` reads from outside.

    ``shared`` are values of parameters alone that several blocks read.
    """
    signature, exact = signatures(nodes, flow.capture.graph_module.get_submodule)
    return Block(
        name=name,
        kind=kind,
        nodes=nodes,
        input=ends[0].node,
        output=ends[1].node,
        context=context_of(flow, reading, ends[0].node, shared),
        x=ends[0].space,
        y=ends[1].space,
        signature=signature,
        exact_signature=exact,
        parameters=count_parameters(flow, nodes),
    )


def _canonical(
    block: Block, representatives: dict[str, tuple[fx.Node, ...]], module_of: Callable[[str], nn.Module]
) -> str:
    """The signature, or that of an earlier block which is the same graph with its operations in another order."""
    if block.signature in representatives:
        return block.signature
    for signature, nodes in representatives.items():
        if len(nodes) == len(block.nodes) and isomorphic(nodes, block.nodes, module_of):
            return signature
    representatives[block.signature] = block.nodes
    return block.signature


def _source(flow: Flow) -> Space | None:
    """The space of the raw input, where it is one floating-point tensor with a batch."""
    tensors = [
        node
        for node in flow.capture.graph.find_nodes(op="placeholder")
        if isinstance(node.meta.get("val"), torch.Tensor) and node.users
    ]
    if len(tensors) != 1 or not tensors[0].meta["val"].is_floating_point() or tensors[0].meta["val"].ndim < 2:
        return None
    return space_of(tensors[0], flow.capture.graph_module.get_submodule)


def why_no_more(flow: Flow) -> str:
    """A sentence that says where a network cannot be cut, for those who asked for more segments than it has blocks."""
    widest = sorted(flow.refused(), key=lambda cut: len(cut.alive), reverse=True)[:3]
    name = type(flow.capture.model).__name__
    if not widest:
        return f"{name} has no further operation to cut after"
    if passed := flow.passed_over():
        return f"{name} has {len(flow.cuts)} cut points among {len(flow.order)} operations: {passed}"
    return (
        f"{name} has {len(flow.cuts)} cut points (places where one activation is alive) among {len(flow.order)} "
        f"operations, and none, for instance, {'; '.join(str(cut) for cut in widest)}"
    )
