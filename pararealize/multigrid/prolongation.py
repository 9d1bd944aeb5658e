r"""nn.Module, factor -> the same network deeper: every residual block becomes several, with smaller steps.

    u + f(u; θ_n)          becomes, for i = 0 … m-1 in a row,        u + (1/m) · f(u; θ_{n,i})

with θ_{n,i} = θ_n, or on the line from θ_n to θ_{n+1}; the total time T stays. Weights that are smooth in depth make
multigrid converge fast, and shallow networks are cheap: train one, deepen it, train on (nested iteration).

Source: Cyr, Günther, Schroder, "Multilevel initialization for layer-parallel deep neural network training",
arXiv 1912.08974.
"""

from __future__ import annotations

import collections
import copy
import itertools
import operator
from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from pararealize.analysis.residual import Residual
from pararealize.argument_types import typed_arguments
from pararealize.errors import MultigridError
from pararealize.multigrid.solver.layers import select_blocks
from pararealize.restore import ordinary_mode
from pararealize.tracing.captured import Capture
from pararealize.tracing.front_end import capture
from pararealize.tracing.graph_copy import GraphCopy
from pararealize.tracing.module_copy import copy_model

__all__ = ["prolong"]

_LARGEST = 1024  # blocks of one; a network grows that much in ten calls by 2

DEEPER = "deeper"  # the top-level name under which further copies of the blocks' weights stand


@typed_arguments(MultigridError, "model", "factor", "weights", "leaf_modules")
def prolong(
    model: nn.Module,
    factor: int = 2,
    example_inputs: Any = None,
    *,
    weights: Literal["linear", "copy"] = "linear",
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> fx.GraphModule:
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
        … in the same order; prolonged again, under ``deeper2.1`` ….

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
        tree, _ = copy_model(model, captured.constants, [top])
        graph = _ProlongedGraph(captured, blocks, tree, top, factor, linear=weights == "linear").graph
        deep = fx.GraphModule(tree, graph, f"Prolonged{type(model).__name__}")
        for path, module in deep.named_modules():
            module.training = tree.get_submodule(path).training if path else model.training
        return deep


class _ProlongedGraph(GraphCopy):
    """The captured graph with m copies of each block in a row, whose weights are added to the tree on the way.

    Weights that several blocks share stay shared by all copies. i is the number of the copy, from 1.
    """

    def __init__(
        self, captured: Capture, blocks: Sequence[Residual], tree: nn.Module, top: str, factor: int, *, linear: bool
    ) -> None:
        super().__init__()
        self.blocks, self.tree, self.top, self.factor, self.linear = blocks, tree, top, factor, linear
        weights = [_weights(block, tree) for block in blocks]
        counts = collections.Counter(itertools.chain.from_iterable(weights))
        self._own_weights = [[path for path in paths if counts[path] == 1] for paths in weights]
        additions = [addition for block in blocks for addition in block.additions]
        sums = {block.additions[0].sum: partial(self._write_block, n) for n, block in enumerate(blocks)}
        self.write(captured, sums, {node for addition in additions for node in (*addition.shortcut, *addition.tail)})

    def _write_block(self, n: int) -> None:
        """What stands in the place of block n's sum: the sums of all its copies, one after the other."""
        block = self.blocks[n]
        addition = block.additions[0]
        u = self._add(block, self.copies[addition.x], self.copies[addition.branch])
        for i in range(1, self.factor):
            paths = self._copy_weights(n, i)
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
        scaled = self.graph.call_function(operator.mul, (k, 1 / self.factor))
        total = self.graph.call_function(operator.add, (u, scaled))
        return total if block.post is None else self.graph.node_copy(block.post, lambda _: total)

    def _copy_weights(self, n: int, i: int) -> dict[str, str]:
        """Copy i of the weights of block n, put into the tree: from their old paths to their new ones."""
        successors = self._weights_of_successor(n)
        paths: dict[str, str] = {}
        for place, path in enumerate(self._own_weights[n]):
            paths[path] = f"{self.top}.{i}.{path}"
            target = attrgetter(successors[place])(self.tree) if successors else None
            _put(self.tree, paths[path], _interpolate(attrgetter(path)(self.tree), target, i / self.factor))
        return paths

    def _weights_of_successor(self, n: int) -> list[str]:
        """The weights of the next block of the chain, where they have the shapes of this block's; none otherwise."""
        if not self.linear or n + 1 == len(self.blocks) or self.blocks[n + 1].x is not self.blocks[n].output:
            return []
        shapes = [[_shapes(attrgetter(path)(self.tree)) for path in paths] for paths in self._own_weights[n : n + 2]]
        return self._own_weights[n + 1] if shapes[0] == shapes[1] else []


def _weights(block: Residual, tree: nn.Module) -> list[str]:
    """The paths of what a block reads that holds weights or statistics: modules, and parameters by themselves."""
    calls = [str(node.target) for node in block.additions[0].nodes if node.op == "call_module"]
    modules = [path for path in calls if tree.get_submodule(path).state_dict()]
    reads = [str(node.target) for node in block.context if node.op == "get_attr" and node.meta.get("trainable")]
    return list(dict.fromkeys([*modules, *reads]))


def _tensors(weight: nn.Module | Tensor) -> dict[str, Tensor]:
    return {"": weight} if isinstance(weight, Tensor) else weight.state_dict()


def _shapes(weight: nn.Module | Tensor) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in _tensors(weight).items()]


def _interpolate(source: nn.Module | Tensor, target: nn.Module | Tensor | None, share: float) -> nn.Module | Tensor:
    """A copy of ``source``, moved by a share of the way to ``target``."""
    result = copy.deepcopy(source)
    if target is not None:
        targets = _tensors(target)
        with torch.no_grad():
            for name, tensor in _tensors(result).items():
                if tensor.is_floating_point():
                    tensor.lerp_(targets[name], share)
    return result


def _put(tree: nn.Module, path: str, weight: nn.Module | Tensor) -> None:
    """Register a module or a parameter under a path, with empty modules on the way where there are none."""
    *names, last = path.split(".")
    owner = tree
    for name in names:
        if name not in owner._modules:
            owner.add_module(name, nn.Module().train(owner.training))
        owner = owner.get_submodule(name)
    setattr(owner, last, weight if isinstance(weight, nn.Module | nn.Parameter) else nn.Parameter(weight))
