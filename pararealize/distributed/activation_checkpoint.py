"""A segment -> the same function, which keeps few activations and computes the others anew in backward.

The segment is split where one value is alive, into about as many runs as each run has such points: what is kept between
runs, and what one run computes anew, are then both about the square root of the whole (Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from pararealize.tracing.extraction import subgraph
from pararealize.tracing.module_view import Piece

__all__ = ["checkpointed_segment", "preserved_buffers"]


def checkpointed_segment(tree: nn.Module, segment: Piece) -> Callable[..., Any]:
    """The segment as a chain of runs, each under :func:`torch.utils.checkpoint.checkpoint`.

    Running statistics move once a step, in forward, and not again where a run is computed anew.
    """
    nodes = list(segment.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    borders = _borders(segment.graph)
    runs = max(1, math.isqrt(len(borders) + 1))
    chosen = [borders[i * (len(borders) + 1) // runs - 1] for i in range(1, runs)]
    (result,) = nodes[-1].all_input_nodes
    pieces = []
    for enters, leaves in zip([inputs[0], *chosen], [*chosen, result], strict=True):
        end = len(nodes) if leaves is result else nodes.index(leaves)
        graph = subgraph((enters, *inputs[1:]), leaves, ("x",), besides=nodes[nodes.index(enters) + 1 : end])
        with graph.inserting_after(next(reversed([node for node in graph.nodes if node.op == "placeholder"]))):
            first = next(iter(graph.nodes))
            copied = graph.call_method("clone", (first,))  # the run's first operation may work in place
        first.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
        pieces.append(Piece(tree, graph, f"{type(segment).__name__}Run"))

    def run(x: torch.Tensor, *context: Any) -> Any:
        for piece in pieces:
            x = checkpoint(piece, x, *context, use_reentrant=False, context_fn=partial(_contexts, piece))
        return x

    return run


def _borders(graph: fx.Graph) -> list[fx.Node]:
    """The operations after which only their own value is read any more, beside inputs and parameters."""
    order = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    place = {node: i for i, node in enumerate(order)}
    first = next(node for node in graph.nodes if node.op == "placeholder")
    last_read = [max((place.get(user, len(order)) for user in node.users), default=i) for i, node in enumerate(order)]
    reach = max((place.get(user, len(order)) for user in first.users), default=0)
    borders = []
    for i, node in enumerate(order):
        if reach <= i and last_read[i] > i and i < len(order) - 1:
            borders.append(node)
        reach = max(reach, last_read[i])
    return borders


def _contexts(piece: nn.Module) -> tuple[Any, Any]:
    """Around a run in forward, and when it is computed anew."""
    return contextlib.nullcontext(), preserved_buffers(piece)


@contextlib.contextmanager
def preserved_buffers(piece: nn.Module) -> Iterator[None]:
    """Work on copies of all buffers of a piece, and put the buffers themselves back on leaving.

    By copies, not by restored values: autograd may have saved a buffer, and would refuse one that was written since.
    """
    owners = [module for module in piece.modules() if module._buffers]
    originals = [dict(module._buffers) for module in owners]
    for module in owners:
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for module, buffers in zip(owners, originals, strict=True):
            module._buffers.update(buffers)
