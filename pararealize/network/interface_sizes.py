"""A chain of blocks, adapters, coarse blocks -> InterfaceSizes: whether they give the network's shapes at other sizes.

Adapters and coarse blocks follow other sizes as strided layers do, which need not be as the network does: an image of
33 may be 16 wide where a segment reads 17. What a segment reads is an expression in the inputs' sizes, known from the
recording; what an adapter gives is found by a run without memory, once for inputs of each size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pararealize.analysis.blocks import BlockChain
from pararealize.coarse.copies import takes_context
from pararealize.coarse.output_correction import InputCorrection
from pararealize.plan.plan import Plan
from pararealize.tracing.expressions import FUNCTIONS, UnknownFunctionError, symbols_of, text_of

from .refitting import shape_given, source_of, without_memory

__all__ = ["InterfaceSizes"]

_MOST = 4096  # sizes of inputs that are remembered

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Check:
    """One module, what it reads and what the network has in the place of what it gives."""

    name: str
    module: nn.Module
    reads: Callable[..., Shape]
    dtype: torch.dtype
    gives: Callable[..., Shape]


class InterfaceSizes:
    """Compares what adapters and coarse blocks give with what the network has, for inputs of any size.

    Args:
        chain: the recorded network.
        plan: where it is cut.
        adapters: C^{m,j} by name.
        coarse: F^{m,j} by name.
    """

    def __init__(
        self, chain: BlockChain, plan: Plan, adapters: Mapping[str, nn.Module], coarse: Mapping[str, nn.Module | None]
    ) -> None:
        self._names, self._symbols = _sizes_of_inputs(chain)
        self._faults: dict[Any, str] = {}
        self._checks: list[_Check] = []
        followers = [(window, segment) for window in plan.windows for segment in window.segments[1:]]
        for (window, segment), (name, module) in zip(followers, adapters.items(), strict=True):
            origin, _ = source_of(chain, plan, window)
            if type(module) not in (nn.Identity, InputCorrection):
                self._add(name, module, origin, chain.blocks[segment.first].input)
        for (_, segment), row in zip(followers, plan.coarse_blocks, strict=True):
            name, block = row.name, coarse[row.name]
            if block is not None and not takes_context(block) and type(block) is not nn.Identity:
                self._add(name, block, chain.blocks[segment.first].input, chain.blocks[segment.last].output)

    def _add(self, name: str, module: nn.Module, reads: fx.Node, gives: fx.Node) -> None:
        """Check a module, unless it is known of neither end, or its ends have one size for ever."""
        ends = self._shape(reads), self._shape(gives)
        sizes = [size for node in (reads, gives) for size in node.meta.get("sizes", ())[1:]]
        if ends[0] is None or ends[1] is None or not any(map(symbols_of, sizes)):
            return
        value, wanted = reads.meta["val"], tuple(map(int, gives.meta["val"].shape))
        twin = without_memory(module)
        recorded = torch.empty(tuple(map(int, value.shape)), dtype=value.dtype, device="meta")
        if shape_given(twin, [recorded])[0] == wanted:  # else a run without memory says nothing about it
            self._checks.append(_Check(name, twin, ends[0], value.dtype, ends[1]))

    def _shape(self, node: fx.Node) -> Callable[..., Shape] | None:
        """The shape of a node's value as a function of the inputs' sizes."""
        sizes = node.meta.get("sizes")
        if sizes is None or None in sizes:
            return None
        try:
            text = ", ".join(text_of(size, self._symbols) for size in sizes)
        except UnknownFunctionError:
            return None
        function: Callable[..., Shape] = eval(f"lambda {', '.join(self._names)}: ({text},)", dict(FUNCTIONS))  # noqa: S307
        return function

    def fault(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Which modules do not give the network's shapes for these inputs; empty where all do."""
        key = tuple(tuple(tensors[name].shape) for name in self._names)
        fault = self._faults.get(key)
        if fault is None:
            fault = "; ".join(filter(None, (self._misfit(check, tensors) for check in self._checks)))
            if len(self._faults) >= _MOST:
                self._faults = {}
            self._faults[key] = fault
        return fault

    def _misfit(self, check: _Check, tensors: Mapping[str, torch.Tensor]) -> str:
        inputs = [tensors[name] for name in self._names]
        reads, wanted = check.reads(*inputs), check.gives(*inputs)
        shape, why = shape_given(check.module, [torch.empty(reads, dtype=check.dtype, device="meta")])
        if shape in (wanted, None):
            return ""
        return f"{check.name} does not take {reads} ({why})" if why else f"{check.name} gives {shape}, not {wanted}"


def _sizes_of_inputs(chain: BlockChain) -> tuple[Sequence[str], dict[Any, str]]:
    """The inputs' names, and what Python reads for each symbol."""
    nodes = [node for node in chain.capture.graph.find_nodes(op="placeholder") if node.meta.get("sizes") is not None]
    symbols = {
        size: f"{node.target}.size({axis})"
        for node in nodes
        for axis, size in enumerate(node.meta["sizes"])
        if getattr(size, "is_Symbol", False)
    }
    return [str(node.target) for node in nodes], symbols
