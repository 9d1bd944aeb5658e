"""A captured graph -> the same graph written anew, with some nodes replaced by others and some left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import fx

from .captured import Capture
from .operations import as_captured

__all__ = ["Transcript"]


class Transcript:
    """A graph that is written after a captured one.

    Attributes:
        graph: what is written.
        known: the node of ``graph`` that stands for each node of the captured one, as far as it is written.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.known: dict[fx.Node, fx.Node] = {}

    def write(
        self, captured: Capture, replaced: Mapping[fx.Node, Callable[[], None]], left_out: Collection[fx.Node]
    ) -> None:
        """Copy every node, but for those that are left out and those in whose place something is called."""
        for node in captured.graph.nodes:
            if node in replaced:
                replaced[node]()
            elif node not in left_out:
                self.known[node] = self._copy(node)
        for node in self.graph.nodes:
            node.meta.clear()

    def _copy(self, node: fx.Node) -> fx.Node:
        """The same node; a plain value that was captured as it was is still checked when the graph runs."""
        copied = self.graph.node_copy(node, self.known.__getitem__)
        if node.op == "placeholder" and "plain" in node.meta:
            self.graph.call_function(as_captured, (copied, node.meta["plain"], str(node.target)))
        return copied
