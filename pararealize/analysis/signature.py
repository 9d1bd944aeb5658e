"""Nodes of a block -> its signatures: one that ignores names and widths, one under which blocks are interchangeable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from pararealize.tracing.operations import tensors_in

__all__ = ["isomorphic", "main_value", "parameter_of", "signatures", "weights_of", "work"]

# which take out a part of a tensor, or give it another shape
_SLICES = {"chunk", "getitem", "narrow", "select", "split", "tensor_split", "unbind"}
_VIEWS = _SLICES | {"getattr", "permute", "reshape", "squeeze", "t", "transpose", "unsqueeze", "view"}


def signatures(nodes: Sequence[fx.Node], module_of: Callable[[str], nn.Module]) -> tuple[str, str]:
    """The structural and the exact signature of a run of nodes.

    Structural: operations, kinds of modules, kernel, stride and whether grouped, and how arguments refer to each other.
    Exact: the modules' whole configuration, and every parameter's and activation's shape besides.
    """
    index = {node: i for i, node in enumerate(nodes)}
    structure, exact = [], []
    for node in nodes:
        references = str(fx.map_arg((node.args, node.kwargs), lambda argument: _reference(argument, index)))
        module = module_of(str(node.target)) if node.op == "call_module" else None
        # for each input that is computed inside, how many nodes ago; 0 for what comes from outside
        links = tuple(index[node] - index[a] if a in index else 0 for a in node.all_input_nodes)
        structure.append((node.op, _label(node, module), links))
        exact.append((node.op, _label(node, module), references, _exact(node, module)))
    return _digest(structure), _digest(exact)


def isomorphic(a: Sequence[fx.Node], b: Sequence[fx.Node], module_of: Callable[[str], nn.Module]) -> bool:
    """Whether two runs of nodes are the same graph, whatever the order in which they run."""
    return bool(nx.vf2pp_is_isomorphic(_graph(a, module_of), _graph(b, module_of), node_label="label"))


def main_value(node: fx.Node) -> torch.Tensor | None:
    """The tensor that a node gives; of several the first with the most axes, which is no loss beside an output."""
    return max(tensors_in(node.meta.get("val")), key=lambda tensor: tensor.ndim, default=None)


def work(node: fx.Node, module_of: Callable[[str], nn.Module]) -> float:
    """About how many multiplications a node does on one sample: parameters times the positions they are used at."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return 0.0
    elements = value.numel() / max(value.shape[0], 1)
    weights = weights_of(node, module_of)
    if not weights:
        return elements
    largest = max(weights, key=torch.Tensor.numel)
    channels = largest.shape[0] if largest.ndim and largest.shape[0] in value.shape else value.shape[-1]
    return elements + sum(weight.numel() for weight in weights) * elements / max(int(channels), 1)


def weights_of(node: fx.Node, module_of: Callable[[str], nn.Module]) -> list[torch.Tensor]:
    """The parameters that a node reads: its module's, or those among its arguments, or slices of such."""
    if node.op == "call_module":
        return list(module_of(str(node.target)).parameters())
    values = [argument.meta["val"] for argument in node.all_input_nodes if parameter_of(argument) is not None]
    return [value for value in values if isinstance(value, torch.Tensor)] if parameter_of(node) is None else []


def parameter_of(node: fx.Node) -> fx.Node | None:
    """The parameter that a node is, or that it is a slice or another view of; ``None`` where it is none."""
    while _label(node, None) in _VIEWS and node.op.startswith("call_") and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node if node.op == "get_attr" and node.meta.get("trainable") else None


def _graph(nodes: Sequence[fx.Node], module_of: Callable[[str], nn.Module]) -> nx.DiGraph[int]:
    index = {node: i for i, node in enumerate(nodes)}
    graph: nx.DiGraph[int] = nx.DiGraph()
    for node, i in index.items():
        graph.add_node(i, label=_label(node, module_of(str(node.target)) if node.op == "call_module" else None))
        graph.add_edges_from((index[argument], i) for argument in node.all_input_nodes if argument in index)
    return graph


def _label(node: fx.Node, module: nn.Module | None) -> str:
    if module is None:
        return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    kernel = (getattr(module, "kernel_size", None), getattr(module, "stride", None))
    depthwise = getattr(module, "groups", 1) == getattr(module, "in_channels", 0)
    return f"{type(module).__name__}{kernel if kernel != (None, None) else ''}{' depthwise' if depthwise else ''}"


def _reference(argument: fx.Node, index: dict[fx.Node, int]) -> str:
    if argument in index:
        return f"#{index[argument]}"
    return f"{'attr' if argument.op == 'get_attr' else 'in'}{_shape(argument)}"


def _exact(node: fx.Node, module: nn.Module | None) -> Any:
    if module is None:
        return _shape(node)
    settings = sorted((k, str(v)) for k, v in vars(module).items() if isinstance(v, str | int | float | tuple))
    shapes = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    return repr(module), tuple(s for s in settings if s[0] != "training"), tuple(shapes), _shape(node)


def _shape(node: fx.Node) -> Any:
    """The shape and type of a value; of a size that grows with the batch, how much it grows by a sample."""
    value, other = node.meta.get("val"), node.meta.get("other")
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    other_shape = other.shape if isinstance(other, torch.Tensor) and other.ndim == value.ndim else value.shape
    return *(a if a == b else f"+{b - a}" for a, b in zip(value.shape, other_shape, strict=True)), str(value.dtype)


def _digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
