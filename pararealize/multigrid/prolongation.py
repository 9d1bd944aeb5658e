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
import operator
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from pararealize.analysis.residual import Residual
from pararealize.errors import MultigridError
from pararealize.multigrid.solver.layers import select_blocks
from pararealize.restore import ordinary_mode
from pararealize.tracing.captured import Capture
from pararealize.tracing.front_end import capture
from pararealize.tracing.graph_copy import GraphCopy
from pararealize.tracing.module_copy import copy_model

__all__ = ["prolong"]

DEEPER = "deeper"  # the top-level name under which further copies of the blocks' weights stand


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
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
        faults.append(f"factor is {factor!r}; pass a whole number of at least 2")
    if weights not in ("linear", "copy"):
        faults.append(f"weights is {weights!r}; pass 'linear' or 'copy'")
    if faults:
        raise MultigridError("; and ".join(faults))
    with ordinary_mode():
        captured = capture(model, example_inputs, leaf_modules=leaf_modules)
        blocks = select_blocks(captured).blocks
        top = _free_name(model)
        tree, _ = copy_model(model, captured.constants, [top])
        writer = _Writer(captured, blocks, tree, top, factor, linear=weights == "linear")
        deep = fx.GraphModule(tree, writer.graph, f"Prolonged{type(model).__name__}")
        for path, module in deep.named_modules():
            module.training = tree.get_submodule(path).training if path else model.training
        return deep


def _free_name(model: nn.Module) -> str:
    name, number = DEEPER, 1
    while hasattr(model, name):
        number += 1
        name = f"{DEEPER}{number}"
    return name


class _Writer(GraphCopy):
    """Writes the graph, and adds the copies' modules and parameters to the tree on the way; i is the copy."""

    def __init__(
        self,
        captured: Capture,
        blocks: Sequence[Residual],
        tree: nn.Module,
        top: str,
        factor: int,
        *,
        linear: bool,
    ) -> None:
        self.blocks, self.tree, self.top, self.factor, self.linear = list(blocks), tree, top, factor, linear
        super().__init__()
        self._owned = [_owned(residual, tree) for residual in blocks]
        counts = collections.Counter(path for owned in self._owned for path in owned)
        self._shared = {path for path, count in counts.items() if count > 1}
        sums = {residual.additions[0].sum: partial(self._block, n) for n, residual in enumerate(blocks)}
        self.write(
            captured, sums, {node for r in blocks for part in r.additions for node in (*part.shortcut, *part.tail)}
        )

    def _block(self, n: int) -> None:
        residual = self.blocks[n]
        part = residual.additions[0]
        u = self._add(residual, self.copies[part.x], self.copies[part.branch])
        for i in range(1, self.factor):
            paths = self._deepen(n, i)
            known = {**self.copies, part.x: u}
            for node in residual.context:
                if node.op == "get_attr" and str(node.target) in paths:
                    known[node] = self.graph.get_attr(paths[str(node.target)])
            for node in part.nodes:
                args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                target = paths.get(str(node.target), node.target) if node.op == "call_module" else node.target
                known[node] = self.graph.create_node(node.op, target, args, kwargs, name=node.name)
            u = self._add(residual, u, known[part.branch])
        self.copies[residual.output] = u

    def _add(self, residual: Residual, u: fx.Node, k: fx.Node) -> fx.Node:
        """U + k/m, and the ReLU that follows the sum."""
        scaled = self.graph.call_function(operator.mul, (k, 1 / self.factor))
        moved = self.graph.call_function(operator.add, (u, scaled))
        return moved if residual.post is None else self.graph.node_copy(residual.post, lambda _: moved)

    def _deepen(self, n: int, i: int) -> dict[str, str]:
        """Copy i of the weights of block n: from their old names to their new ones."""
        owned = [path for path in self._owned[n] if path not in self._shared]
        following = self._following(n)
        made: dict[str, str] = {}
        for place, path in enumerate(owned):
            new = f"{self.top}.{i}.{path}"
            toward = self._get(following[place]) if following else None
            _put(self.tree, new, _between(self._get(path), toward, i / self.factor))
            made[path] = new
        return made

    def _following(self, n: int) -> list[str]:
        """The weights of the next block of the chain, where they are shaped as this block's are."""
        last = n + 1 == len(self.blocks)
        if not self.linear or last or self.blocks[n + 1].x is not self.blocks[n].output:
            return []
        ours, theirs = ([p for p in self._owned[m] if p not in self._shared] for m in (n, n + 1))
        same = [_shapes(self._get(path)) for path in ours] == [_shapes(self._get(path)) for path in theirs]
        return theirs if same else []

    def _get(self, path: str) -> nn.Module | Tensor:
        owner, _, name = path.rpartition(".")
        found: nn.Module | Tensor = getattr(self.tree.get_submodule(owner), name)
        return found


def _owned(residual: Residual, tree: nn.Module) -> list[str]:
    """What a block reads of the tree that holds weights or statistics: modules, and parameters by themselves."""
    called = [str(node.target) for node in residual.additions[0].nodes if node.op == "call_module"]
    holding = [path for path in called if tree.get_submodule(path).state_dict()]
    read = [str(node.target) for node in residual.context if node.op == "get_attr" and node.meta.get("trainable")]
    return list(dict.fromkeys([*holding, *read]))


def _shapes(thing: nn.Module | Tensor) -> list[tuple[str, torch.Size]]:
    if isinstance(thing, Tensor):
        return [("", thing.shape)]
    return [(name, value.shape) for name, value in thing.state_dict().items()]


def _between(here: nn.Module | Tensor, there: nn.Module | Tensor | None, share: float) -> nn.Module | Tensor:
    """A copy of ``here``, moved by a share of the way to ``there``."""
    made = copy.deepcopy(here)
    if there is not None:
        pairs: Iterable[tuple[Any, Any]] = (
            [(made, there)]
            if isinstance(made, Tensor)
            else zip(made.state_dict().values(), there.state_dict().values(), strict=True)  # type: ignore[union-attr]
        )
        with torch.no_grad():
            for ours, theirs in pairs:
                if ours.is_floating_point():
                    ours.lerp_(theirs, share)
    return made


def _put(tree: nn.Module, path: str, thing: nn.Module | Tensor) -> None:
    """Hang a module or a parameter under a path, with empty modules on the way where there are none."""
    *above, name = path.split(".")
    here = tree
    for part in above:
        if part not in here._modules:
            here.add_module(part, nn.Module().train(here.training))
        here = here.get_submodule(part)
    if isinstance(thing, nn.Module):
        here.add_module(name, thing)
    else:
        here.register_parameter(name, thing if isinstance(thing, nn.Parameter) else nn.Parameter(thing))
