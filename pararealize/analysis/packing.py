"""Capture of a network whose blocks hand on several values -> one in which a single tensor stands between its blocks.

Blocks of a reversible network give two halves, those of WaveNet their output and a sum of skips:

    y_1, y_2 = block(x_1, x_2)        ->        packed = cat([y_1, y_2], channels)              │ cut
                                                y_1, y_2 = packed[: c_1], packed[c_1 :]

Where k values of one type and of equal sizes, but for the channels, are alive, they are packed along the channels and
taken apart behind the cut, to the bit. All that comes after, adapters, coarse blocks, messages, sees one tensor. Within
a segment nothing is packed: see :func:`unpack_inside`.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from pararealize.tracing.captured import Capture
from pararealize.tracing.module_view import Piece
from pararealize.tracing.node_table import storage_of
from pararealize.tracing.regions import Checkpoint, GradMode, InferenceMode

from .finder import BlockFinder, BlockSpan
from .flow import Flow, flow_of, living, unfit
from .space import space_of

__all__ = ["Pack", "pack_of", "packings", "unpack_inside"]

_MOST = 4  # values in one interface
_FEWEST = 3  # interfaces with k values, or all: then these are what blocks hand on, and not a carry that grows
_MODES = ("val", "other")  # the keys of a node's two fake values
_PACK, _PART = "pack", "part"  # keys of a pack's meta, and of the meta of what is taken out of it
_ADDITIONS = (operator.add, torch.add, "add")


@dataclasses.dataclass(frozen=True, slots=True)
class Pack:
    """Several values as one tensor.

    Attributes:
        axis: along which they stand side by side, the batch counted.
        names: of the values.
        sizes: of each along the axis.
    """

    axis: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return " + ".join(f"{name} {size}" for name, size in zip(self.names, self.sizes, strict=True))


def pack_of(node: fx.Node) -> Pack | None:
    """What is packed in a node's value; ``None`` where it is one value."""
    pack = node.meta.get(_PACK)
    return pack if isinstance(pack, Pack) else None


def packings(capture: Capture) -> Iterator[tuple[BlockFinder, list[BlockSpan]]]:
    """Ways to cut a network with 2, 3 … values alive between its blocks, packed where there are several.

    The finder is of a rewritten graph; the network itself stays.
    """
    graph, _ = _copied(capture)
    _add_early(graph)
    early = _with_graph(capture, graph)
    whole = flow_of(early)
    for flow, k in itertools.product([whole, *_with_context(whole)], range(2, _MOST + 1)):
        packs = _packs(flow, k)
        if not any(len(pack.names) == k for pack in packs.values()):
            continue
        finder = BlockFinder(dataclasses.replace(flow, cuts=tuple(packs)), tails=True)
        spans = list(_with_fewest(finder, packs))
        if sum(len(packs[span.last].names) == k for span in spans) >= min(_FEWEST, len(spans) - 1) > 0:
            yield _packed(early, flow, packs, spans)


def _with_context(flow: Flow) -> Iterator[Flow]:
    """The flow with what is alive throughout, such as what conditions every block, as context; where there is any."""
    half = len(flow.order) // 2
    births = [t for t, last in enumerate(flow.last_read) if last - t > half]
    if births:
        yield dataclasses.replace(flow, broadcast=tuple(flow.order[t] for t in births), start=births[-1] + 1)


def _with_graph(capture: Capture, graph: fx.Graph) -> Capture:
    name = type(capture.graph_module).__name__
    return dataclasses.replace(capture, graph_module=Piece(capture.model, graph, name, capture.constants))


def _copied(capture: Capture) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of the graph, whose nodes carry what the originals' do."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in capture.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph, copies


# Sums ---------------------------------------------------------------------------------------------------------------


def _add_early(graph: fx.Graph) -> None:
    """Put sums right behind their last operand, where one of the operands is read by nothing else later.

    ``sum(skips)`` at the end of a forward keeps every skip alive; added up one by one on the way, they are one value.
    """
    changed = _changed(graph)
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        operands = node.all_input_nodes
        memories = {memory for read in (node, *operands) for memory in read.meta.get("memories", ())}
        if node.target not in _ADDITIONS or not operands or changed & memories:
            continue
        last = max(operands, key=place.__getitem__)
        dying = (
            operand for operand in operands if all(place[u] <= place[last] for u in operand.users if u is not node)
        )
        is_free = node.meta.get("region", ()) == last.meta.get("region", ())
        if is_free and place[node] > place[last] + 1 and next(dying, None) is not None:
            last.append(node)
            place = {other: i for i, other in enumerate(graph.nodes)}


def _changed(graph: fx.Graph) -> set[int]:
    """The memories that are changed in place somewhere, in either mode."""
    return {memory for node in graph.nodes for memories in node.meta.get("changed", ()) for memory in memories}


# Where --------------------------------------------------------------------------------------------------------------


def _packs(flow: Flow, k: int) -> dict[int, Pack]:
    """The positions after which one value is alive, or k that can be packed.

    As many everywhere: a carry that grows, as within a dense block, makes every further interface larger.
    """
    packs: dict[int, Pack] = {}
    changed = _changed(flow.capture.graph)
    widths = {size for parameter in flow.capture.model.parameters() for size in parameter.shape}
    for i, alive in living(flow.last_read):
        nodes = [flow.order[t] for t in alive if flow.order[t] not in flow.broadcast]
        if (
            i < flow.start - 1
            or len(nodes) not in (1, k)
            or not flow.order[i].users
            or any(unfit(node, flow.capture) for node in nodes)
        ):
            continue
        pack = _pack(nodes, flow, changed, widths)
        if pack is not None and not _is_within(flow, i, nodes):
            packs[i] = pack
    return packs


def _is_within(flow: Flow, i: int, nodes: Sequence[fx.Node]) -> bool:
    """Whether a region goes on from a position to the next that is one call in backward, or that takes gradients away.

    Values that were computed outside of such a one have gradients, and packed within would have none.
    """
    here, *behind = (node.meta.get("region") or () for node in flow.order[i : i + 2])
    going_on = [context for region in behind for context in here if context in region]
    regions = [node.meta.get("region") or () for node in nodes]
    return any(
        isinstance(context, Checkpoint)
        or (_takes_gradients(context) and any(context not in region for region in regions))
        for context in going_on
    )


def _takes_gradients(context: object) -> bool:
    return isinstance(context, InferenceMode) or (isinstance(context, GradMode) and not context.enabled)


def _pack(nodes: Sequence[fx.Node], flow: Flow, changed: set[int], widths: set[int]) -> Pack | None:
    """How values stand side by side; ``None`` where they differ in more than their channels."""
    values = [node.meta["val"] for node in nodes]
    names = tuple(node.name for node in nodes)
    if len(nodes) == 1:
        return Pack(1, names, (int(values[0].shape[1]),))
    if len({(value.dtype, value.device, value.ndim) for value in values}) > 1:
        return None
    module_of = flow.capture.graph_module.get_submodule
    ((axis, _),) = Counter(space_of(node, module_of).channel + 1 for node in nodes).most_common(1)
    others = {(*value.shape[:axis], *value.shape[axis + 1 :]) for value in values}
    sizes = tuple(size for node in nodes if (size := _fixed_size(node, axis, widths)) is not None)
    # two that look into memory which is changed in place would not see it any more, each in a place of its own
    counts = Counter(memory for node in nodes for memory in set(node.meta.get("memories", ())))
    if (
        len(others) > 1
        or len(sizes) < len(nodes)
        or any(count > 1 and memory in changed for memory, count in counts.items())
    ):
        return None
    return Pack(axis, names, sizes)


def _fixed_size(node: fx.Node, axis: int, widths: set[int]) -> int | None:
    """The size along an axis; ``None`` where other inputs have another one, which a cut that stands for all cannot.

    Where the recording has no expressions for sizes, one that no parameter has is taken for such a size.
    """
    if "sizes" in node.meta:
        size = node.meta["sizes"][axis]
        return None if size is None or getattr(size, "free_symbols", None) else int(size)
    fixed = int(node.meta["val"].shape[axis])
    return fixed if fixed in widths else None


def _with_fewest(finder: BlockFinder, packs: dict[int, Pack]) -> Iterator[BlockSpan]:
    """The spans, each up to where fewer values are alive, if only what has no weights stands before that point."""
    spans, begin = finder.spans(), None
    for span, following in itertools.pairwise([*spans, None]):
        if span is None:
            return
        last = end = span.last
        limit = len(finder.flow.order) if following is None else following.last
        while end + 1 < limit and not finder.is_weighted(end + 1):
            end += 1
            if end in packs and len(packs[end].names) < len(packs[last].names):
                last = end
        yield dataclasses.replace(span, first=span.first if begin is None else begin, last=last)
        begin = last + 1


# Packing ------------------------------------------------------------------------------------------------------------


def _packed(
    capture: Capture, flow: Flow, packs: dict[int, Pack], spans: list[BlockSpan]
) -> tuple[BlockFinder, list[BlockSpan]]:
    """The graph anew, packed at the ends of the spans, and the spans in it."""
    graph, copies = _copied(capture)
    changed = _changed(graph)
    ends = [spans[0].first - 1, *(span.last for span in spans)]
    values = {node: copies[node] for node in flow.order}  # where each value is read from now on
    cuts: dict[int, fx.Node] = {}
    for end in ends:
        if end < 0:
            continue
        cuts[end] = copies[flow.order[end]]
        if len(packs[end].names) > 1:
            alive = [node for node in flow.order if node.name in packs[end].names]
            following = copies[flow.order[end + 1]] if end + 1 < len(flow.order) else graph.output_node()
            cuts[end], parts = _insert(cuts[end], following, [values[node] for node in alive], packs[end], changed)
            values.update(zip(alive, parts, strict=True))
    result = flow_of(_with_graph(capture, graph))
    position = {node: i for i, node in enumerate(result.order)}
    if flow.broadcast:
        context = tuple(copies[node] for node in flow.broadcast)
        start = max(position[node] for node in context) + 1
        result = dataclasses.replace(
            result, broadcast=context, start=start, cuts=tuple(position[n] for n in cuts.values())
        )
    edges = [position[cuts[end]] + 1 if end >= 0 else 0 for end in ends]
    moved = [
        dataclasses.replace(span, first=first, last=behind - 1)
        for span, (first, behind) in zip(spans, itertools.pairwise(edges), strict=True)
    ]
    return BlockFinder(result), moved


def _insert(
    place: fx.Node, following: fx.Node, nodes: list[fx.Node], pack: Pack, changed: set[int]
) -> tuple[fx.Node, list[fx.Node]]:
    """Pack values behind a node; whatever comes later reads them from the pack."""
    graph = place.graph
    is_inside = place.meta.get("region", ()) == following.meta.get("region", ())
    meta = partial(_meta, is_inside=is_inside)
    index = {node: i for i, node in enumerate(graph.nodes)}
    readers = [[user for user in node.users if index[user] > index[place]] for node in nodes]
    with graph.inserting_after(place):
        packed = graph.create_node("call_function", torch.cat, (list(nodes), pack.axis), name="packed")
    packed.meta = meta(place, [torch.cat([n.meta[key] for n in nodes], pack.axis) for key in _MODES])
    packed.meta[_PACK] = pack
    _set_sizes(packed, nodes[0], pack.axis, sum(pack.sizes))
    behind, start, parts = packed, 0, []
    for i, (node, size) in enumerate(zip(nodes, pack.sizes, strict=True)):
        part = packed
        for method, arguments in (("narrow", (pack.axis, start, size)), *_relaid(packed, node, pack.axis, size)):
            values = [getattr(part.meta[key], method)(*arguments) for key in _MODES]
            with graph.inserting_after(behind):
                part = behind = graph.create_node("call_method", method, (part, *arguments), name=node.name)
            behind.meta = meta(following, values)
        part.meta[_PART] = i
        if changed.intersection(node.meta.get("memories", ())):  # in place, later: in memory of its own, as it was
            with graph.inserting_after(behind):
                behind = graph.create_node("call_method", "clone", (part,), name=node.name)
            behind.meta = meta(following, [node.meta[key] for key in _MODES]) | {"memories": node.meta["memories"]}
        _set_sizes(behind, node, pack.axis, size)
        for user in readers[i]:
            user.replace_input_with(node, behind)
        parts.append(behind)
        start += size
    return packed, parts


def _set_sizes(node: fx.Node, like: fx.Node, axis: int, size: int) -> None:
    """The sizes of a value as expressions, where the recording has them: those of another one, but along an axis."""
    if "sizes" in like.meta:
        node.meta["sizes"] = (*like.meta["sizes"][:axis], size, *like.meta["sizes"][axis + 1 :])


def _relaid(packed: fx.Node, node: fx.Node, axis: int, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Calls that give a part of a pack the memory layout that the value had, which ``view`` and rounding depend on."""
    value = node.meta["val"]
    strides = value.stride()
    if strides == packed.meta["val"].narrow(axis, 0, size).stride():
        return
    order = tuple(sorted(range(value.ndim), key=lambda axis: (-strides[axis], axis)))
    in_order = order == tuple(range(value.ndim))
    if not in_order:
        yield "permute", order
    yield "contiguous", ()
    if not in_order:
        yield "permute", tuple(order.index(axis) for axis in range(value.ndim))


def _meta(near: fx.Node, values: list[torch.Tensor], *, is_inside: bool) -> dict[str, Any]:
    """What a node of the recorder's would carry for these values in the two modes, called where another node was."""
    memories = tuple(map(storage_of, values))
    return {
        "val": values[0],
        "other": values[1],
        "nn_module_stack": near.meta.get("nn_module_stack", {}),
        "calls": near.meta.get("calls", ()),
        "trainable": True,
        "memory": memories[0],
        "memories": memories,
        "changes": frozenset(),
        "changed": (frozenset(), frozenset()),
        "region": near.meta.get("region", ()) if is_inside else (),
    }


def unpack_inside(graph: fx.Graph) -> None:
    """Read values that a piece itself packs from where they were, and pack only what leaves it."""
    packs = [node for node in graph.nodes if _PACK in node.meta and node.op == "call_function"]
    for pack in packs:
        for part in list(_parts(pack)):
            part.replace_all_uses_with(pack.args[0][part.meta[_PART]])
            while not part.users and part is not pack:
                source = part.all_input_nodes[0]
                graph.erase_node(part)
                part = source
        if not pack.users:
            graph.erase_node(pack)


def _parts(node: fx.Node) -> Iterator[fx.Node]:
    """What is taken out of a pack."""
    for user in node.users:
        if _PART in user.meta:
            yield user
        elif user.target in ("narrow", "permute", "contiguous"):
            yield from _parts(user)
