"""Adapters and coarse blocks, a network recorded at other sizes -> the same modules where they fit, or refitted ones.

Most adapters and coarse blocks follow other sizes as the network's own strided layers do. Where they end a pixel off,
the same weights are put into other steps: other paddings and ratios. What has weights for each token cannot follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.space import Space
from pararealize.coarse.adapter import build_adapter
from pararealize.coarse.coarse_block import draw_coarse
from pararealize.coarse.copies import takes_context
from pararealize.errors import GuardError
from pararealize.plan.plan import Plan, Window
from pararealize.random_source import RandomSource
from pararealize.tracing.model_twin import plain_tensors, twin_of

__all__ = ["refit", "shape_given", "source_of", "without_memory"]


def refit(
    chain: BlockChain, plan: Plan, adapters: Mapping[str, nn.Module], coarse: Mapping[str, nn.Module | None]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module | None]]:
    """Adapters and coarse blocks, by name, for the sizes of a chain, over the weights of those given.

    Args:
        chain: the blocks, recorded at some sizes.
        plan: made at other sizes, perhaps.
        adapters: C^{m,j} for the plan's sizes.
        coarse: F^{m,j} likewise; ``None`` where it is g^{m,j+1} itself.

    Raises:
        GuardError: one of them cannot follow; names it, and the shapes.
    """
    faults: list[str] = []

    def fitting(
        module: nn.Module, reads: Sequence[fx.Node], target: fx.Node, what: str, other: Callable[[], nn.Module | None]
    ) -> nn.Module:
        fault = _misfit(module, reads, target)
        if fault is None:
            return module
        refitted = _over_weights_of(module, other())
        if refitted is not None and _misfit(refitted, reads, target) is None:
            return refitted
        faults.append(f"{what} {fault}")
        return module

    fitted: dict[str, nn.Module] = {}
    followers = [(window, segment) for window in plan.windows for segment in window.segments[1:]]
    for row, (window, segment) in zip(plan.adapters, followers, strict=True):
        origin, source = source_of(chain, plan, window)
        first = chain.blocks[segment.first]
        sides = row.causal  # by axis: a network that has other axes now would have to be looked at anew
        drawn = partial(_on_meta_device, build_adapter, source, first.x, reads=row.source, sides=sides)
        same_axes = len(row.y.extent) == len(first.x.extent)
        other = drawn if same_axes else _nothing
        fitted[row.name] = fitting(adapters[row.name], [origin], first.input, row.name, other)
    fitted_coarse: dict[str, nn.Module | None] = {}
    for spec, (_, segment) in zip(plan.coarse_blocks, followers, strict=True):
        block = coarse[spec.name]
        first, last = chain.blocks[segment.first], chain.blocks[segment.last]
        if block is not None:
            context = chain.context(segment.first, segment.last) if takes_context(block) else ()
            drawn_block = partial(_on_meta_device, draw_coarse, dataclasses.replace(spec, x=first.x, y=last.y), seed=0)
            same_axes = len(spec.y.extent) == len(last.y.extent)
            fallback = drawn_block if same_axes else _nothing
            block = fitting(block, [first.input, *context], last.output, spec.name, fallback)
        fitted_coarse[spec.name] = block
    fitted_coarse |= {row.name: coarse[row.name] for row in plan.corrections}  # of channels alone
    if faults:
        raise GuardError(f"adapters and coarse blocks cannot follow these sizes: {'; '.join(faults)}")
    return fitted, fitted_coarse


def source_of(chain: BlockChain, plan: Plan, window: Window) -> tuple[fx.Node, Space]:
    """What the adapters of a window read, and its space."""
    if window.m == 1 and plan.source == "input" and chain.source is not None:
        inputs = chain.capture.graph.find_nodes(op="placeholder")
        return next(node for node in inputs if isinstance(_value(node), torch.Tensor) and node.users), chain.source
    block = chain.blocks[window.first]
    return block.input, block.x


def _nothing() -> None:
    return None


def _on_meta_device(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return build(*args, **kwargs)


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _misfit(module: nn.Module, reads: Sequence[fx.Node], target: fx.Node) -> str | None:
    """What is wrong with the shape that a module gives; ``None`` where nothing is."""
    wanted, inputs = tuple(map(int, _value(target).shape)), list(map(_meta_value, reads))
    shape, why = shape_given(without_memory(module), inputs)
    if shape in (wanted, None):
        return None
    return f"does not take {tuple(inputs[0].shape)} ({why})" if why else f"gives {shape} where the network has {wanted}"


def shape_given(module: nn.Module, inputs: Sequence[Any]) -> tuple[tuple[int, ...] | None, str]:
    """The shape that a module without memory gives, ``None`` where that cannot be found out; or why it gives none."""
    try:
        with RandomSource(seed=0):  # what the module draws with memory is not the caller's
            return tuple(module(*inputs).shape), ""
    except NotImplementedError:  # an operation that does not run without memory
        return None, ""
    except Exception as error:  # noqa: BLE001 - whatever a module raises for sizes that it does not take
        if "meta" in str(error):  # a tensor that has memory, of some object that the module holds
            return None, ""
        return (), str(error).split("\n")[0]


def _meta_value(node: fx.Node) -> Any:
    value = _value(node)
    if not isinstance(value, torch.Tensor):
        return node.meta.get("plain", value)
    return torch.empty(tuple(map(int, value.shape)), dtype=value.dtype, device="meta")


def without_memory(module: nn.Module) -> nn.Module:
    """A twin of a module, in eval mode, without memory: other threads may use the module itself meanwhile."""
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach().to("meta")
        for tensor in (*module.parameters(), *module.buffers(), *_plain_tensors(module))
    }
    twin = twin_of(module, memo)
    for inner in twin.modules():
        inner.training = False  # a batch norm in train mode refuses what has one value a channel
    return twin


def _plain_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Tensors that modules hold as attributes, which are neither parameters nor buffers."""
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    values = (value for inner in module.modules() for value in vars(inner).values())
    return [tensor for value in values for tensor in plain_tensors(value) if id(tensor) not in own]


def _over_weights_of(module: nn.Module, other: nn.Module | None) -> nn.Module | None:
    """A module of other steps with the tensors of this one; ``None`` where their names or shapes differ."""
    if other is None or {key: value.shape for key, value in module.state_dict().items()} != {
        key: value.shape for key, value in other.state_dict().items()
    }:
        return None
    modules = dict(module.named_modules())
    for path, inner in other.named_modules():
        if inner._parameters or inner._buffers:
            for contents in ("_parameters", "_buffers"):
                inner.__dict__[contents] = modules[path].__dict__[contents]
    return other
