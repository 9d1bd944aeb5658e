r"""nn.Module, factor -> the same network deeper, a ProlongedModule: each block becomes several, with smaller steps.

    u + f(u; θ_n)          becomes, for i = 0 … m-1 in a row,        u + (1/m) · f(u; θ_{n,i})

with θ_{n,i} = θ_n, or on the line from θ_n to θ_{n+1}; the total time T stays. Weights that are smooth in depth make
multigrid converge fast, and shallow networks are cheap: train one, deepen it, train on (nested iteration).

Source: Cyr, Günther, Schroder, "Multilevel initialization for layer-parallel deep neural network training",
arXiv 1912.08974.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import operator
from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pararealize.analysis.residual import Residual
from pararealize.argument_types import typed_arguments
from pararealize.errors import ModelError, MultigridError
from pararealize.multigrid.solver.layers import select_blocks
from pararealize.restore import ordinary_mode
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.captured import Capture
from pararealize.tracing.conditions import CallConditions
from pararealize.tracing.front_end import capture
from pararealize.tracing.graph_copy import GraphCopy
from pararealize.tracing.guards import Guards
from pararealize.tracing.module_copy import bare_tree, copy_contents, copy_hooks, copy_model, share_contents
from pararealize.tracing.module_view import Piece
from pararealize.tracing.original import Original
from pararealize.tracing.recorded_module import RecordedModule
from pararealize.tracing.recordings import LIMIT, Recordings
from pararealize.tracing.tree_watch import TreeWatch, omitted_calls

__all__ = ["ProlongedModule", "prolong"]

_LARGEST = 1024  # blocks of one; a network grows that much in ten calls by 2

# Functions that move statistics which they are given. What else changes tensors of the model makes its module one call.
_MOVING = {F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm}

DEEPER = "deeper"  # the top-level name under which further copies of the blocks' weights stand


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _BlockWeights:
    """What a block reads that holds weights or statistics.

    Attributes:
        name: the block's qualified name.
        paths: of modules, and of tensors that are read by themselves.
        own: those of them of which each copy of the block has its own; the others are wholly shared with other blocks.
    """

    name: str
    paths: tuple[str, ...]
    own: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Refinement:
    """How a network was deepened: its class, m, where copies of weights stand, and what its blocks read."""

    model: str
    factor: int
    top: str
    blocks: tuple[_BlockWeights, ...]


class ProlongedModule(RecordedModule):
    """A network each block of which has become several, with smaller steps; ``print(net.code)`` shows them.

    Attributes:
        guards: conditions on the inputs under which the graph is right; the original is recorded anew for others.

    Example:
        >>> import torch
        >>> from pararealize import prolong
        >>> from pararealize.models import resnet20
        >>> prolong(resnet20(), 2)(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """

    _refinement: _Refinement

    def __init__(
        self,
        tree: nn.Module,
        graph: fx.Graph,
        refinement: _Refinement,
        *,
        guards: Guards,
        original: Original,
        recording_limit: int = LIMIT,
        omitted: Iterable[str] = (),
    ) -> None:
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), f"Prolonged{refinement.model}")
        share_contents(self, tree)
        conditions, build = CallConditions.of(CallSignature.of_graph(graph), guards), partial(_prolong_anew, self)
        watch = TreeWatch(tree, [graph], follows=True, omitted=omitted)
        recordings = Recordings(conditions, original, build, watch=watch, limit=recording_limit)
        self.__dict__.update(guards=guards, _refinement=refinement, _recordings=recordings)
        original.give_mode(self)
        self.graph = graph

    def __deepcopy__(self, memo: dict[int, Any]) -> ProlongedModule:
        recordings = self.__dict__["_recordings"]
        recordings.watch.check()
        tree = copy_contents(self, memo)
        copied = ProlongedModule(
            tree,
            copy.deepcopy(self.graph),
            self.__dict__["_refinement"],
            guards=self.__dict__["guards"],
            original=copy.deepcopy(recordings.original, memo),
            recording_limit=recordings.limit,
            omitted=recordings.watch.omitted,
        )
        memo[id(self)] = copied
        copy_hooks(self, copied, memo)
        return copied

    def __reduce__(self) -> Any:
        raise ModelError(
            "a prolonged module is saved by its parameters, not pickled: net.state_dict() (safetensors), then "
            "prolong(model, ...) with the same arguments and load_state_dict"
        )


@typed_arguments(MultigridError, "model", "factor", "weights", "leaf_modules")
def prolong(
    model: nn.Module,
    factor: int = 2,
    example_inputs: Any = None,
    *,
    weights: Literal["linear", "copy"] = "linear",
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> ProlongedModule:
    r"""A deeper network of the same function family and the same total time, with weights to start training from.

    Args:
        model: any network with chains of residual blocks; it is left as found.
        factor: m, how many blocks each becomes; its steps are 1/m as long.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; inferred where it can be.
        weights: ``"linear"`` between a block and the next of its chain, where they have the same parameters; or
            ``"copy"`` of the block's own.
        leaf_modules: classes or qualified names to keep as single nodes.

    Returns:
        A module in the model's mode; the original's parameters keep their names, the others stand under ``deeper.1``
        … in the same order; prolonged again, under ``deeper2.1`` …. Weights that several blocks share are shared by
        all copies of theirs.

    Raises:
        MultigridError: no chain of residual blocks, or a factor that is none.
        PararealizeError: as :func:`pararealize.capture` does.

    Example:
        >>> import torch
        >>> from pararealize import layer_parallel, prolong
        >>> from pararealize.models import resnet20
        >>> deep = prolong(resnet20(), 4)
        >>> print(layer_parallel(deep).hierarchy)
        level 0: 30 steps, 9 intervals of 4, 4, 4, 1, 4, 4, 1, 4, 4
        level 1: 9 steps
    """
    faults = []
    if isinstance(factor, bool) or not isinstance(factor, int) or not 2 <= factor <= _LARGEST:
        faults.append(f"factor is {factor!r}; pass a whole number from 2 to {_LARGEST}")
    if weights not in ("linear", "copy"):
        faults.append(f"weights is {weights!r}; pass 'linear' or 'copy'")
    if faults:
        raise MultigridError("; and ".join(faults))
    with ordinary_mode():
        captured = capture(model, example_inputs, leaf_modules=leaf_modules)
        blocks = select_blocks(captured).blocks
        names = itertools.chain([DEEPER], (f"{DEEPER}{number}" for number in itertools.count(2)))
        top = next(name for name in names if not hasattr(model, name))
        root, _ = copy_model(model, captured.constants, [top])
        tree = bare_tree(root)  # which has the root's hooks
        original = Original(root, tuple(captured.opaque))
        refinement = _Refinement(
            model=type(model).__name__, factor=factor, top=top, blocks=tuple(_block_weights(blocks, tree))
        )
        _add_copies(tree, blocks, refinement, linear=weights == "linear")
        graph = _ProlongedGraph(captured, blocks, refinement).graph
        left, guards = omitted_calls(captured.graph, [graph]), captured.guards
        return ProlongedModule(tree, graph, refinement, guards=guards, original=original, omitted=left)


def _prolong_anew(net: ProlongedModule, captured: Capture) -> tuple[CallConditions, Piece]:
    """The same blocks, with the weights that there are, in a new recording of the original.

    Raises:
        MultigridError: they are not there.
    """
    refinement: _Refinement = net.__dict__["_refinement"]
    blocks = select_blocks(captured).blocks
    reads = [(block.name, tuple(_weights(block, net))) for block in blocks]
    if reads != [(block.name, block.paths) for block in refinement.blocks]:
        raise MultigridError(f"the blocks are not those {len(refinement.blocks)} that it was deepened by")
    graph = _ProlongedGraph(captured, blocks, refinement).graph
    net.__dict__["_recordings"].watch.add([graph])
    return CallConditions.of(captured.example.call, captured.guards), Piece(net, graph, f"Prolonged{refinement.model}")


class _ProlongedGraph(GraphCopy):
    """The captured graph with m copies of each block in a row; i is the number of the copy, from 1."""

    def __init__(self, captured: Capture, blocks: Sequence[Residual], refinement: _Refinement) -> None:
        super().__init__()
        self.blocks, self.refinement = blocks, refinement
        additions = [addition for block in blocks for addition in block.additions]
        sums = {block.additions[0].sum: partial(self._write_block, n) for n, block in enumerate(blocks)}
        self.write(captured, sums, {node for addition in additions for node in (*addition.shortcut, *addition.tail)})

    def _write_block(self, n: int) -> None:
        """What stands in the place of block n's sum: the sums of all its copies, one after the other."""
        block = self.blocks[n]
        addition = block.additions[0]
        u = self._add(block, self.copies[addition.x], self.copies[addition.branch])
        for i in range(1, self.refinement.factor):
            paths = {path: f"{self.refinement.top}.{i}.{path}" for path in self.refinement.blocks[n].own}
            copies = {**self.copies, addition.x: u}
            for node in block.context:
                if node.op == "get_attr" and str(node.target) in paths:
                    copies[node] = self.graph.get_attr(paths[str(node.target)])
            for node in addition.nodes:
                copies[node] = self.graph.node_copy(node, copies.__getitem__)
                if node.op == "call_module":
                    copies[node].target = paths.get(str(node.target), node.target)
            u = self._add(block, u, copies[addition.branch])
        self.copies[block.output] = u

    def _add(self, block: Residual, u: fx.Node, k: fx.Node) -> fx.Node:
        """U + k/m, and the ReLU that follows the sum."""
        scaled = self.graph.call_function(operator.mul, (k, 1 / self.refinement.factor))
        total = self.graph.call_function(operator.add, (u, scaled))
        return total if block.post is None else self.graph.node_copy(block.post, lambda _: total)


def _add_copies(tree: nn.Module, blocks: Sequence[Residual], refinement: _Refinement, *, linear: bool) -> None:
    """Put the weights of all further copies of the blocks into the tree."""
    shared = {
        id(tensor): tensor
        for tensor, count in _counts([_tensors_of(tree, block.paths) for block in refinement.blocks])
        if count > 1
    }
    for n, block in enumerate(refinement.blocks):
        successors = _weights_of_successor(tree, blocks, refinement, n) if linear else []
        for i in range(1, refinement.factor):
            memo: dict[int, Any] = dict(shared)  # and what two weights of one block share, its copy's share
            moved = set(shared)
            for place, path in enumerate(block.own):
                weight = copy.deepcopy(attrgetter(path)(tree), memo)
                if successors:
                    _move(weight, attrgetter(successors[place])(tree), i / refinement.factor, moved)
                _put(tree, path, f"{refinement.top}.{i}.{path}", weight)


def _weights_of_successor(
    tree: nn.Module, blocks: Sequence[Residual], refinement: _Refinement, n: int
) -> tuple[str, ...]:
    """The weights of the next block of the chain, where they have the shapes of this block's; none otherwise."""
    if n + 1 == len(blocks) or blocks[n + 1].x is not blocks[n].output:
        return ()
    own = [block.own for block in refinement.blocks[n : n + 2]]
    shapes = [[_shapes(attrgetter(path)(tree)) for path in paths] for paths in own]
    return own[1] if shapes[0] == shapes[1] else ()


def _block_weights(blocks: Sequence[Residual], tree: nn.Module) -> list[_BlockWeights]:
    """What the blocks read."""
    paths = [tuple(_weights(block, tree)) for block in blocks]
    counts = {id(tensor): count for tensor, count in _counts([_tensors_of(tree, each) for each in paths])}
    return [
        _BlockWeights(
            name=block.name,
            paths=each,
            own=tuple(path for path in each if any(counts[id(t)] == 1 for t in _tensors_of(tree, [path]))),
        )
        for block, each in zip(blocks, paths, strict=True)
    ]


def _counts(tensors: Sequence[Iterable[Tensor]]) -> list[tuple[Tensor, int]]:
    """Each tensor, and how many of the blocks have it, under whatever names."""
    by_id = {id(tensor): tensor for block in tensors for tensor in block}
    counts = collections.Counter(key for block in tensors for key in {id(tensor) for tensor in block})
    return [(tensor, counts[key]) for key, tensor in by_id.items()]


def _weights(block: Residual, tree: nn.Module) -> list[str]:
    """The paths of what a block reads that holds weights or statistics.

    These are modules, and tensors by themselves: parameters, and statistics that a function moves.
    """
    nodes = block.additions[0].nodes
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    modules = [path for path in calls if tree.get_submodule(path).state_dict()]
    moved = {read for node in nodes if node.target in _MOVING for read in node.all_input_nodes}
    tensors = [
        node for node in block.context if node.op == "get_attr" and (node.meta.get("trainable") or node in moved)
    ]
    reads = [path for path in (str(node.target) for node in tensors) if isinstance(attrgetter(path)(tree), Tensor)]
    return list(dict.fromkeys([*modules, *reads]))


def _tensors_of(tree: nn.Module, paths: Iterable[str]) -> list[Tensor]:
    return [tensor for path in paths for tensor in _tensors(attrgetter(path)(tree)).values()]


def _tensors(weight: nn.Module | Tensor) -> dict[str, Tensor]:
    if isinstance(weight, Tensor):
        return {"": weight}
    return {name: value for name, value in weight.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _shapes(weight: nn.Module | Tensor) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in _tensors(weight).items()]


@torch.no_grad()
def _move(weight: nn.Module | Tensor, target: nn.Module | Tensor, share: float, moved: set[int]) -> None:
    """Move tensors by a share of the way to those of ``target``, but for those that were moved before, by their ids."""
    targets = _tensors(target)
    for name, tensor in _tensors(weight).items():
        if tensor.is_floating_point() and id(tensor) not in moved:
            tensor.lerp_(targets[name], share)
            moved.add(id(tensor))


def _put(tree: nn.Module, source: str, path: str, weight: nn.Module | Tensor) -> None:
    """Register the copy of a module or tensor under a path, with empty modules on the way where there are none."""
    *names, last = path.split(".")
    owner = tree
    for name in names:
        if name not in owner._modules:
            owner.add_module(name, nn.Module().train(owner.training))
        owner = owner.get_submodule(name)
    if isinstance(weight, nn.Module | nn.Parameter):
        setattr(owner, last, weight)
        return
    of, _, name = source.rpartition(".")
    owner.register_buffer(last, weight, persistent=name not in tree.get_submodule(of)._non_persistent_buffers_set)
