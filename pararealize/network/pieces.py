"""BlockChain, Plan -> the graphs of stem, context, segments and head, each of which can run by itself.

Where a piece works in place on what others read, it works on a copy; where several pieces would draw the same random
numbers, each anew, the network is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.packing import unpack_inside
from pararealize.errors import CoarseError, CutError
from pararealize.plan.plan import Plan, SegmentPlan, Window
from pararealize.random_source import RandomSource
from pararealize.random_state import preserve_own_host_state
from pararealize.tracing.captured import CHANGES_ITSELF
from pararealize.tracing.extraction import subgraph
from pararealize.tracing.layouts import lay_out
from pararealize.tracing.model_twin import real_twin
from pararealize.tracing.python_state import names
from pararealize.tracing.random_calls import drawn_repeatedly
from pararealize.tracing.regions import GradMode, keep_regions

__all__ = ["Pieces", "clone_changing_outputs", "clone_overwritten"]


class Pieces:
    """The graphs of stem, context, segments and head, and what they read.

    Args:
        chain: the network's blocks.
        plan: where to cut.

    Attributes:
        placeholders: the inputs of the captured graph that are tensors, which stem and context are called with.
        reads: for each segment, by name, the captured nodes that it reads beside its activation.
        from_stem: those of them that depend on the activation before the first block: the stem gives them.
        computed: those that depend on the inputs alone: the context gives them.
        graphs: the pieces by name, ``stem``, ``context`` (where there is one), ``g1`` … (``g1_1`` …), ``head``.

    Raises:
        CutError: several pieces would draw the same random numbers, each anew; or a block asks for what is another
            thing between segments.
        CoarseError: a segment that is to be its own coarse block writes into its own parameters or buffers.
    """

    def __init__(self, chain: BlockChain, plan: Plan) -> None:
        self.chain, self.plan = chain, plan
        self.placeholders = [
            node for node in chain.capture.graph.find_nodes(op="placeholder") if "plain" not in node.meta
        ]
        self.reads = {segment.name: chain.context(segment.first, segment.last) for segment in plan.segments}
        context = dict.fromkeys(node for read in (*self.reads.values(), chain.head.context) for node in read)
        broadcast = chain.flow.broadcast
        self.entry = chain.blocks[0].input
        self._unread = self._unread_calls()
        self.from_stem = [node for node in context if node in broadcast]
        self.computed = [node for node in context if node not in broadcast and node.op != "placeholder"]
        self.graphs: dict[str, fx.Graph] = {"stem": self._stem()}
        if self.computed:
            self.graphs["context"] = graph = subgraph(self.placeholders, self.computed)
            clone_changing_outputs(graph)
            clone_overwritten(graph, first=True)
        for window in plan.windows:
            for segment in window.segments:
                self.graphs[segment.name] = self._segment(segment, window)
        head = chain.head
        inputs = (chain.blocks[-1].output, *head.context)
        self.graphs["head"] = subgraph(inputs, head.output, ("z",), besides=[*head.nodes, *self._unread["head"]])
        lay_out(self.graphs["head"])
        clone_overwritten(self.graphs["head"], first=False)  # of its context, which others read, or a message brought
        if repeated := drawn_repeatedly(self.graphs, chain.capture.model.get_submodule):
            raise CutError(
                f"random numbers are read by several parts of the network, each of which would draw its own: "
                f"{'; '.join(repeated)}; draw them where they are read, or make them an input of the model"
            )
        followers = [segment for segment in plan.segments if segment.j > 1]
        if followers and (asking := self._asking_for_gradients()):
            raise CutError(
                f"{', '.join(asking[:3])} asks whether its input requires a gradient, within torch.enable_grad: called "
                "without gradients, the model has values there that do, and those between segments do not; convert "
                "with n = 1, or ask torch.is_grad_enabled() there"
            )
        for segment, coarse in zip(followers, plan.coarse_blocks, strict=True):
            if coarse.kind == "exact" and (modules := self._changing_modules(segment)):
                raise CoarseError(
                    f'{coarse.name} is {segment.label} itself ("exact"), which runs a second time '
                    f"in each step; {', '.join(modules[:3])} writes into its own parameters or buffers, from which "
                    'autograd then has no gradients; pass coarse="block" (copies of its blocks) or another kind'
                )
        for graph in self.graphs.values():  # which are to be run, copied and saved without fake values
            unpack_inside(graph)
            keep_regions(graph)

    def _asking_for_gradients(self) -> list[str]:
        """The blocks' modules that read ``requires_grad`` where gradients are switched on whatever they are outside."""
        nodes = [node for block in self.chain.blocks for node in block.nodes if node.op == "call_module"]
        on = [str(node.target) for node in nodes if GradMode(enabled=True) in node.meta.get("region", ())]
        module_of = self.chain.capture.model.get_submodule
        return [path for path in on if any(map(_asks_for_gradients, module_of(path).modules()))]

    def _unread_calls(self) -> dict[str, list[fx.Node]]:
        """Calls that no block holds, since they read and give nothing of the state, by the piece that they run in.

        They are in the graph for their effect: after random numbers that nobody reads, others are drawn.
        """
        chain = self.chain
        piece_of = dict.fromkeys(chain.stem.nodes, "stem")
        for segment in self.plan.segments:
            for block in chain.blocks[segment.first : segment.last + 1]:
                piece_of |= dict.fromkeys(block.nodes, segment.name)
        piece_of |= dict.fromkeys(chain.head.nodes, "head")
        calls: dict[str, list[fx.Node]] = {
            name: [] for name in ("stem", *(segment.name for segment in self.plan.segments), "head")
        }
        piece = "stem"
        for node in chain.capture.graph.nodes:
            piece = piece_of.get(node, piece)
            if node.op.startswith("call_") and not node.users and node not in piece_of and not node.all_input_nodes:
                calls[piece].append(node)
        return calls

    def _stem(self) -> fx.Graph:
        outputs = (self.entry, *self.from_stem) if self.from_stem else self.entry
        graph = subgraph(self.placeholders, outputs, besides=[*self.chain.stem.nodes, *self._unread["stem"]])
        if self.computed or self.plan.n > 1:
            clone_overwritten(graph, first=True)
        return graph

    def _changing_modules(self, segment: SegmentPlan) -> list[str]:
        """The modules of a segment that write into what autograd has saved for them, if they are called twice."""
        captured = self.chain.capture
        blocks = self.chain.blocks[segment.first : segment.last + 1]
        calls = [node for block in blocks for node in block.nodes if node.op == "call_module"]
        suspects = [node for node in calls if captured.opaque.get(str(node.target)) == CHANGES_ITSELF]
        return [str(node.target) for node in suspects if _loses_gradients(node, captured.model)]

    def _segment(self, segment: SegmentPlan, window: Window) -> fx.Graph:
        blocks = self.chain.blocks[segment.first : segment.last + 1]
        nodes = [*(node for block in blocks for node in block.nodes), *self._unread[segment.name]]
        graph = subgraph((blocks[0].input, *self.reads[segment.name]), blocks[-1].output, ("x",), besides=nodes)
        if blocks[0].input.op != "placeholder":
            lay_out(graph)
        # r_{j-1} reads x_j once more; x_1 is read by adapters where they read the stem or the window before, or is the
        # caller's own tensor; w_m is also the last z_j.
        adapters_read_it = window.m > 1 or self.plan.source == "stem" or self.entry.op == "placeholder"
        corrected = any(row.j == segment.j for row in window.corrections)  # K^{m,j} reads x_j after g^{m,j}
        is_read_elsewhere = (adapters_read_it and self.plan.n > 1) or corrected
        clone_overwritten(graph, first=segment.j > 1 or is_read_elsewhere)
        return graph


def _loses_gradients(node: fx.Node, model: nn.Module) -> bool:
    """Whether there are no gradients of two calls of a node's module, one after the other; tried on a twin of it."""

    def value(argument: fx.Node) -> Any:
        return tree_map_only(torch.Tensor, zeros, argument.meta.get("val"))

    def zeros(fake: torch.Tensor) -> torch.Tensor:
        tensor = torch.zeros(fake.shape, dtype=fake.dtype, device=fake.device)
        return tensor.requires_grad_(tensor.is_floating_point())

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    twin, _ = real_twin(model.get_submodule(str(node.target)))
    try:
        with RandomSource(seed=0), preserve_own_host_state(), torch.enable_grad():
            outputs = tree_leaves([twin(*args, **kwargs) for _ in range(2)])
            sources = [o for o in outputs if isinstance(o, torch.Tensor) and o.requires_grad and not o.is_meta]
            torch.autograd.backward(sources, list(map(torch.ones_like, sources)))
    except Exception as error:  # noqa: BLE001 - of zeros a module may think what it likes: that says nothing of gradients
        return "modified by an inplace operation" in str(error)
    return False


def clone_overwritten(graph: fx.Graph, *, first: bool) -> None:
    """Let a piece work in place on copies of its inputs, which others read; of the first one only where asked for."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs if first else inputs[1:]:
        if _is_changed_after(node):
            with graph.inserting_after(inputs[-1]):
                clone = graph.call_method("clone", (node,))
            node.replace_all_uses_with(clone, delete_user_cb=lambda user, clone=clone: user is not clone)


def clone_changing_outputs(graph: fx.Graph) -> None:
    """Hand out copies of values that the piece itself changes in place later."""
    output = graph.output_node()
    for node in output.all_input_nodes:
        if _is_changed_after(node):
            with graph.inserting_after(node):
                output.replace_input_with(node, graph.call_method("clone", (node,)))


def _is_changed_after(node: fx.Node) -> bool:
    """Whether a later operation works in place on memory that the node's value looks into, in either mode."""
    memories = node.meta.get("memories", (None, None))  # in the two modes
    nodes = list(node.graph.nodes)
    return any(
        memory in changed
        for other in nodes[nodes.index(node) + 1 :]
        for memory, changed in zip(memories, other.meta.get("changed", ()), strict=False)
    )


def _asks_for_gradients(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.nn.") and names(module, "requires_grad")
