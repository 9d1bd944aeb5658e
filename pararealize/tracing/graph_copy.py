"""A captured graph -> the same graph written anew, with some nodes replaced by others and some omitted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping

from torch import fx

from .captured import Capture
from .region_code import write_regions
from .regions import keep_regions

__all__ = ["GraphCopy"]


class GraphCopy:
    """A graph that follows a captured one node by node.

    Attributes:
        graph: the graph that is written.
        copies: from nodes of the captured graph to the nodes of ``graph`` that stand for them, as far as it is written.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}

    def write(
        self, captured: Capture, replacements: Mapping[fx.Node, Callable[[], None]], omitted: Collection[fx.Node]
    ) -> None:
        """Copy every node that is not omitted, or call its replacement; the graph takes the arguments of the forward.

        A replacement writes nodes of its own into ``graph`` and says in ``copies`` which of them stands for the value.
        The captured nodes' ``meta`` is dropped at the end, save regions: shapes recorded there need not be true of the
        new graph.
        """
        call = captured.example.call
        tensors = call.write(self.graph)
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                if "plain" not in node.meta:
                    self.copies[node] = tensors[str(node.target)]
            elif node in replacements:
                last = next(iter(reversed(self.graph.nodes)), None)  # no iterator in torch 2.10
                replacements[node]()
                self._enter_region(node, after=last)
            elif node not in omitted:
                self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
        calls = {node: dict(node.meta) for node in self.graph.nodes if call.begins(node)}
        keep_regions(self.graph)
        for node, meta in calls.items():
            node.meta.update(meta)
        write_regions(self.graph)

    def _enter_region(self, node: fx.Node, *, after: fx.Node | None) -> None:
        """Let what was written in the place of a node stand in its region."""
        for new in itertools.takewhile(lambda new: new is not after, reversed(self.graph.nodes)):
            new.meta["region"] = node.meta.get("region", ())
