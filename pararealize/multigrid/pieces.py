"""A recording of a network, cut into layers -> LayerPieces: what runs it, over the network's own modules."""

from __future__ import annotations

import copy
import dataclasses

from torch import fx, nn

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.layers import Layer, Layers, find_layers
from pararealize.multigrid.solver.propagators import TimeStep
from pararealize.tracing.captured import Capture
from pararealize.tracing.conditions import CallConditions
from pararealize.tracing.graph_copy import GraphCopy
from pararealize.tracing.module_view import Piece
from pararealize.tracing.tree_watch import TreeWatch, omitted_calls

__all__ = ["LayerPieces", "layers_anew", "watch_of", "whole_graph"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LayerPieces:
    """What one recording of a network consists of.

    Attributes:
        structure: stem, layers and head as graphs.
        stem: the stem.
        rows: the layers in order, each of which can be run.
        head: the head.
        whole: the network as it is.
    """

    structure: Layers
    stem: Piece
    rows: list[TimeStep]
    head: Piece
    whole: Piece

    @classmethod
    def of(cls, net: nn.Module, layers: Layers, whole: fx.Graph) -> LayerPieces:
        """Those of a network with these layers and, of the whole of it, this graph."""
        return cls(
            structure=layers,
            stem=Piece(net, copy.deepcopy(layers.stem), "Stem"),
            rows=[TimeStep(net, layer) for layer in layers.layers],
            head=Piece(net, copy.deepcopy(layers.head), "Head"),
            whole=Piece(net, copy.deepcopy(whole), "Whole"),
        )


def whole_graph(captured: Capture) -> fx.Graph:
    """The graph of the network as it is."""
    whole = GraphCopy()
    whole.write(captured, {}, ())
    return whole.graph


def watch_of(tree: nn.Module, layers: Layers, whole: fx.Graph) -> TreeWatch:
    """Of the modules that a network reads; steps compute the ReLUs behind sums themselves, and pass identities over."""
    parts = [layers.stem, *(layer.graph for layer in layers.layers), layers.head]
    return TreeWatch(tree, [whole], omitted=omitted_calls(whole, parts))


def layers_anew(net: nn.Module, before: Layers, captured: Capture) -> tuple[CallConditions, LayerPieces]:
    """The same layers in a new recording of a network's original.

    Args:
        net: the network.
        before: its layers in the first recording.
        captured: the new one.

    Raises:
        MultigridError: they are not there.
    """
    layers = find_layers(captured)
    if [_kind(layer) for layer in layers.layers] != [_kind(layer) for layer in before.layers]:
        raise MultigridError(f"its layers are {layers}, and were {before}")
    whole = whole_graph(captured)
    net.__dict__["_recordings"].watch.add([whole])
    return CallConditions.of(layers.call, captured.guards), LayerPieces.of(net, layers, whole)


def _kind(layer: Layer) -> tuple[str, bool, bool]:
    return ("" if layer.fixed else layer.name), layer.fixed, layer.post
