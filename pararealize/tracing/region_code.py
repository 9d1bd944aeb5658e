"""A graph whose nodes stand in regions -> its code, in which they run within them.

    with torch.no_grad():                          region (GradMode(False),)
        features = self.backbone(x)
    def checkpoint_1(x):                           region (Checkpoint(1, ...),)
        layer_0 = self.layer.0(x)
        return layer_0
    layer_0 = torch.utils.checkpoint.checkpoint(checkpoint_1, x, use_reentrant = False, ...)

The graph itself stays flat, so that whoever cuts, copies or rewires it needs to know nothing of regions; a node that is
added to it stands outside of them. What has no effect of its own (parameters, sizes) stands where its neighbours do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from .regions import Autocast, Checkpoint, Context, GradMode, InferenceMode, Region, SavedTensorHooks

__all__ = ["checkpoint_as_reentrant", "write_regions"]


_NUMBERS = (
    "size_of",
    "dtype_of",
    "finfo_of",
    "by_mode",
    "device_of",
    "after",
)  # functions that compute nothing of autograd's


def write_regions(graph: fx.Graph) -> None:
    """Let the graph's code hold its regions, where there are any."""
    if any(node.meta.get("region") for node in graph.nodes):
        graph.set_codegen(_RegionCode())


def checkpoint_as_reentrant(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """A checkpoint whose results require a gradient only where an argument does, as those of a re-entrant one.

    Parameters that the function reads get no gradient otherwise, as with ``use_reentrant=True``, also within an
    ``enable_grad`` of its own; unlike that, it works with ``torch.autograd.grad``. All of the function runs again in
    the backward pass, as then: it may count its calls.
    """
    graded = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
    with torch.set_grad_enabled(graded):
        results = checkpoint(function, *args, use_reentrant=False, early_stop=False, **settings)
    return results if graded else pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, results)


class _RegionCode(CodeGen):
    """Writes ``with`` around the lines of nodes that stand in a region, and makes a function of a checkpoint's."""

    def _gen_python_code(self, nodes: Any, *args: Any, **kwargs: Any) -> Any:
        writer = _Writer(list(nodes))
        self._body_transformer = writer.write
        try:
            code = super()._gen_python_code(nodes, *args, **kwargs)
        finally:
            self._body_transformer = None
        code.globals.update(writer.globals)
        return code


class _Writer:
    """Puts the lines that torch.fx wrote for each node within the regions of the nodes.

    Attributes:
        globals: what the code names besides.
    """

    def __init__(self, nodes: list[fx.Node]) -> None:
        self.globals: dict[str, Any] = {}
        self._nodes = nodes
        self._place = {node: i for i, node in enumerate(nodes)}
        self._lines: list[str] = []

    def write(self, body: list[str]) -> list[str]:
        """The lines of the whole body, from those of torch.fx, which announces each node by a comment."""
        begins = [i for i, line in enumerate(body) if line.startswith("# COUNTER: ")]
        ends = [*begins[1:], len(body)]
        self._lines = ["".join(body[i:j]) for i, j in zip(begins, ends, strict=True)]
        before = "".join(body[: begins[0]]) if begins else ""
        return [before, *self._run(0, len(self._nodes), 0)]

    def _run(self, first: int, end: int, depth: int) -> list[str]:
        """The lines of nodes that share their ``depth`` outermost contexts."""
        lines = []
        i = first
        while i < end:
            region = _region_of(self._nodes[i])
            if region is None or len(region) <= depth:
                lines.append(self._lines[i])
                i += 1
                continue
            stop = self._end_of_context(i, end, depth)
            lines += self._within(region[depth], self._run(i, stop, depth + 1), i, stop)
            i = stop
        return lines

    def _end_of_context(self, first: int, end: int, depth: int) -> int:
        """Where the context ends that the first of some nodes stands in."""
        context = (_region_of(self._nodes[first]) or ())[depth]
        stop = first + 1
        for i in range(first + 1, end):
            region = _region_of(self._nodes[i])
            if region is None:
                continue
            if region[depth : depth + 1] != (context,):
                break
            stop = i + 1
        return stop

    def _within(self, context: Context, inner: list[str], first: int, end: int) -> list[str]:
        indented = [_indented(line) for line in inner]
        if isinstance(context, Checkpoint):
            return self._checkpoint(context, indented, first, end)
        return [f"with {self._manager(context)}:\n", *indented]

    def _manager(self, context: Context) -> str:
        """The context as Python writes it."""
        if isinstance(context, GradMode):
            return f"torch.{'enable' if context.enabled else 'no'}_grad()"
        if isinstance(context, InferenceMode):
            return "torch.inference_mode()"
        if isinstance(context, Autocast):
            return (
                f"torch.autocast({context.device!r}, {context.dtype}, enabled = {context.enabled}, "
                f"cache_enabled = {context.cache})"
            )
        assert isinstance(context, SavedTensorHooks)
        pack, unpack = self._global("pack", context.pack), self._global("unpack", context.unpack)
        return f"torch.autograd.graph.saved_tensors_hooks({pack}, {unpack})"

    def _checkpoint(self, context: Checkpoint, inner: list[str], first: int, end: int) -> list[str]:
        """A function of the nodes' lines, and its call, with all that it reads as arguments.

        It may read nothing of what is around it by itself: torch.fx drops every value after its last use, and what is
        computed anew in backward would find none.
        """
        nodes = self._nodes[first:end]
        inside = set(nodes)
        reads = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
        gives = [node for node in nodes if any(user not in inside for user in node.users)]
        name = f"checkpoint_{first}"
        arguments, results = ", ".join(map(repr, reads)), ", ".join(map(repr, gives))
        function = (
            self._global("checkpoint_as_reentrant", checkpoint_as_reentrant)
            if context.reentrant
            else "torch.utils.checkpoint.checkpoint"
        )
        settings = {} if context.reentrant else {"use_reentrant": "False"}
        for key, value in context.settings:
            settings[key] = self._global(key, value) if callable(value) else repr(value)
        call = ", ".join([name, *map(repr, reads), *(f"{key} = {value}" for key, value in settings.items())])
        last = [repr(node) for node in reads if max(self._place[user] for user in node.users) < end]
        dropped = f";  {' = '.join([*last, 'None'])}" if last else ""
        return [
            f"def {name}({arguments}):\n",
            *inner,
            f"    return {f'({results},)' if len(gives) > 1 else results or None}\n",
            f"{f'{results} = ' if gives else ''}{function}({call}){dropped}\n",
        ]

    def _global(self, name: str, value: Any) -> str:
        """The name by which the code finds an object."""
        unique, number = name, 0
        while self.globals.setdefault(unique, value) is not value:
            number += 1
            unique = f"{name}_{number}"
        return unique


def _region_of(node: fx.Node) -> Region | None:
    """The region that a node's line stands in; ``None`` where it may stand in any.

    Inputs of a piece stand outside, though their values may have been made within one. What reads a parameter or
    computes with numbers alone may stand in any.
    """
    if node.op in ("placeholder", "output"):
        return ()
    is_free = node.op == "get_attr" or getattr(node.target, "__name__", "") in _NUMBERS
    region: Region | None = node.meta.get("region", None if is_free else ())
    return region


def _indented(lines: str) -> str:
    return "".join(f"    {line}" if line.strip() else line for line in lines.splitlines(keepends=True))
