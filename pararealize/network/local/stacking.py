"""PararealModule -> Stacks, segments that run as one batched network, and the network's graph with them as one call.

Segments of one structure compute the same operations with other numbers. Stacked, each operation runs once on all of
them: a convolution becomes a grouped one, a matrix product a batched one, and as many times fewer kernels are launched:

    y_1 = g1(x_1)                                          weights of g1, g2, g3 ── stack ──┐
    y_2 = g2(x_2)      ->   y_1, y_2, y_3 = g1,2,3(x_1, x_2, x_3)      x_1, x_2, x_3 ── stack ── vmap(g)
    y_3 = g3(x_3)

The weights are stacked anew in every forward, so that parameters, their names and optimisers stay, and gradients flow
to each; buffers that g changes are written back.
"""

from __future__ import annotations

import dataclasses
import operator
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from pararealize.analysis.stopwatch import now
from pararealize.network.module import PararealModule
from pararealize.network.parts import read_equation

__all__ = ["Stack", "pays", "stacked_graph", "stacks_of"]

_ROUNDS = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """Segments of one structure, called with an input for each.

    Attributes:
        segments: their names, of one window: those of the next wait for it.
        pieces: g^j for each.
        leaves: for each, its modules that do the work, in order.
        tensors: for each name of a parameter or buffer in the first piece, its owner and its name there in each piece.
    """

    segments: tuple[str, ...]
    pieces: tuple[fx.GraphModule, ...]
    leaves: tuple[tuple[nn.Module, ...], ...]
    tensors: Mapping[str, tuple[tuple[nn.Module, str], ...]]

    @property
    def first(self) -> str:
        """The first segment, whose place in the graph is that of all."""
        return self.segments[0]

    @property
    def __name__(self) -> str:  # as torch.fx prints it
        return "_".join(["stack", *self.segments])

    def __call__(self, *x: Tensor) -> tuple[Tensor, ...]:
        """``(x_j, ...) -> (y_j, ...)``; one by one where shapes, types or modes have come to differ."""
        if not self._alike(x):
            return tuple(piece(x_j) for piece, x_j in zip(self.pieces, x, strict=True))
        originals = {name: [getattr(owner, key) for owner, key in owners] for name, owners in self.tensors.items()}
        stacked = {name: torch.stack(tensors) for name, tensors in originals.items()}

        def g(tensors: dict[str, Tensor], x_j: Tensor) -> Any:
            return functional_call(self.pieces[0], tensors, (x_j,), strict=False)

        y: Tensor = torch.vmap(g, randomness="different")(stacked, torch.stack(x))
        if any(module.training for module in self.leaves[0]):
            self._write_back(originals, stacked)
        return y.unbind()

    def _alike(self, x: Sequence[Tensor]) -> bool:
        modes = {tuple(module.training for module in leaves) for leaves in self.leaves}
        return len(modes) == 1 and len({(x_j.shape, x_j.dtype, x_j.device) for x_j in x}) == 1

    def _write_back(self, originals: Mapping[str, list[Tensor]], stacked: Mapping[str, Tensor]) -> None:
        """Copy what the segments changed in place, their buffers such as running means, to where it belongs."""
        with torch.no_grad():
            for name, tensors in originals.items():
                if not isinstance(tensors[0], nn.Parameter):
                    for tensor, value in zip(tensors, stacked[name], strict=True):
                        tensor.copy_(value)

    def __str__(self) -> str:
        return " = ".join(self.segments)


def stacks_of(net: PararealModule) -> tuple[list[Stack], dict[str, str]]:
    """The largest groups of segments that can be stacked, and by name why each of the others cannot.

    Two segments can where their graphs, their modules' settings, all shapes and their devices agree. Left out are those
    that read context, use modules of other libraries (their settings cannot be compared), tie parameters among
    themselves or borrow them from another device.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3, cuts=["stage1.1", "stage1.2"])
        >>> stacks, left_out = stacks_of(net)
        >>> [str(stack) for stack in stacks], left_out
        (['g1 = g2'], {'g3': 'no other segment has its structure'})
    """
    groups: dict[Any, dict[str, fx.GraphModule]] = {}
    left_out: dict[str, str] = {}
    for segment in net.plan.segments:
        piece = net.segments[segment.name]
        assert isinstance(piece, fx.GraphModule)
        if reason := _why_not(piece):
            left_out[segment.name] = reason
        else:
            key = segment.m, str(segment.x), str(segment.y), _structure(piece)
            groups.setdefault(key, {})[segment.name] = piece
    alone = [name for group in groups.values() if len(group) == 1 for name in group]
    left_out |= dict.fromkeys(alone, "no other segment has its structure")
    stacks = [_stack(group) for group in groups.values() if len(group) > 1]
    return stacks, {row.name: left_out[row.name] for row in net.plan.segments if row.name in left_out}


def stacked_graph(net: PararealModule, stacks: Sequence[Stack]) -> fx.Graph:
    """The network's own graph, in which each stack is one call in the place of its first segment."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(net.graph, copies))
    calls = read_equation(net.graph).calls
    for stack in stacks:
        old = [copies[calls[name]] for name in stack.segments]
        inputs = [node.all_input_nodes[0] for node in old]
        last = max(inputs, key=list(graph.nodes).index)
        with graph.inserting_after(last):
            call = graph.create_node("call_function", stack, tuple(inputs), name=stack.__name__)
        place = call
        for i, node in enumerate(old):
            with graph.inserting_after(place):
                place = graph.call_function(operator.getitem, (call, i))
            node.replace_all_uses_with(place)
            graph.erase_node(node)
    graph.lint()
    return graph


def pays(stack: Stack, x: Sequence[Tensor], *, backward: bool = True) -> bool:
    """Whether a stack is faster than its segments one by one, here and now: medians of turns about.

    It runs the segments, so that buffers and random state move on; gradients stay.
    """

    def alone(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(piece(x_j) for piece, x_j in zip(stack.pieces, x, strict=True))

    seconds: dict[Callable[..., Any], list[float]] = {alone: [], stack: []}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*batching rule.*", UserWarning)  # of operations run one by one after all
        for _ in range(1 + _ROUNDS):
            for run, times in seconds.items():
                times.append(_seconds(run, x, stack, backward=backward))
    return statistics.median(seconds[stack][1:]) < statistics.median(seconds[alone][1:])


def _seconds(run: Callable[..., Any], x: Sequence[Tensor], stack: Stack, *, backward: bool) -> float:
    x = [x_j.detach().requires_grad_(backward and x_j.is_floating_point()) for x_j in x]
    weights = {id(p): p for piece in stack.pieces for p in piece.parameters() if p.requires_grad}
    start = now(x[0].device)
    with torch.set_grad_enabled(backward):
        y = run(*(x_j * 1 for x_j in x))  # a segment may work in place, which a leaf forbids
        if backward:
            sources = [*x, *weights.values()]
            torch.autograd.grad(y, sources, [torch.ones_like(y_j) for y_j in y], allow_unused=True)
    return now(x[0].device) - start


# ---------------------------------------------------------------------------------------------------- equal structure


def _why_not(piece: fx.GraphModule) -> str:
    nodes = list(piece.graph.nodes)
    if sum(node.op == "placeholder" for node in nodes) > 1:
        return "it reads context"
    for node in nodes:
        if node.op == "call_module":
            module = piece.get_submodule(str(node.target))
            if not type(module).__module__.startswith("torch.nn.modules."):
                return f"{node.target} is a {type(module).__name__}, whose settings cannot be compared"
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                return f"{node.target} has hooks"
        elif node.op == "get_attr":
            owner, key = _owner(piece, str(node.target))
            if key not in owner._parameters and key not in owner._buffers:
                return f"it reads the constant {node.target}"
    tensors = [getattr(owner, key) for owner, key in _tensors(piece).values()]
    return "it ties parameters" if len(set(map(id, tensors))) < len(tensors) else ""


def _structure(piece: fx.GraphModule) -> Any:
    """Equal for pieces that differ in the numbers that their parameters hold, and in nothing else."""
    index: dict[fx.Node, int] = {}
    lines: list[Any] = []
    for node in piece.graph.nodes:
        sources = node.all_input_nodes
        if sources and sources[0].op == "placeholder" and node.target == "clone":
            index[node] = index[sources[0]]  # what a segment may work on in place; stacked, its input is a copy anyway
            continue
        index[node] = len(lines)
        references = str(fx.map_arg((node.args, node.kwargs), lambda argument: f"#{index[argument]}"))
        what: Any = node.target
        if node.op == "call_module":
            what = _settings(piece.get_submodule(node.target))
        elif node.op == "get_attr":
            what = _shape(getattr(*_owner(piece, node.target)))
        elif node.op in ("placeholder", "output"):
            what = ""
        lines.append((node.op, what, references))
    return tuple(lines)


def _settings(module: nn.Module) -> Any:
    plain = sorted((k, str(v)) for k, v in vars(module).items() if isinstance(v, str | int | float | tuple))
    tensors = [(name, _shape(tensor)) for name, tensor in _own_tensors(module)]
    return type(module), repr(module), tuple(p for p in plain if p[0] != "training"), tuple(tensors)


def _shape(tensor: Tensor) -> Any:
    return tuple(tensor.shape), str(tensor.dtype), str(tensor.device), isinstance(tensor, nn.Parameter)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _tensors(piece: fx.GraphModule) -> dict[str, tuple[nn.Module, str]]:
    """The owner of each tensor that a piece's graph uses and its name there, by its name in the graph, in order."""
    owners: dict[str, tuple[nn.Module, str]] = {}
    for node in piece.graph.nodes:
        if node.op == "call_module":
            module = piece.get_submodule(node.target)
            owners |= {f"{node.target}.{name}": _owner(module, name) for name, _ in _own_tensors(module)}
        elif node.op == "get_attr":
            owners[node.target] = _owner(piece, node.target)
    return owners


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that has the tensor of that qualified name, and the tensor's name there."""
    owner, _, key = path.rpartition(".")
    return root.get_submodule(owner), key


def _stack(group: Mapping[str, fx.GraphModule]) -> Stack:
    pieces = tuple(group.values())
    calls = [piece.graph.find_nodes(op="call_module") for piece in pieces]
    tensors = [_tensors(piece) for piece in pieces]
    return Stack(
        segments=tuple(group),
        pieces=pieces,
        leaves=tuple(tuple(piece.get_submodule(node.target) for node in nodes) for piece, nodes in zip(pieces, calls)),
        tensors=dict(zip(tensors[0], zip(*(owners.values() for owners in tensors), strict=True), strict=True)),
    )
