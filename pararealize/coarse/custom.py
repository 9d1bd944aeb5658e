"""Builder (a callable of the user's), CoarsePlan -> the coarse block that it builds, checked on fake tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.causality import causal_axes
from pararealize.analysis.fields.probe import Probe, UnprobedError, try_out
from pararealize.analysis.space import Space
from pararealize.errors import CoarseError, PararealizeError

from .copies import takes_context
from .spec import CoarsePlan

__all__ = ["Builder", "build_custom", "builder_name"]

Builder: TypeAlias = Callable[[fx.GraphModule, tuple[int, ...], tuple[int, ...]], nn.Module]


def builder_name(build: Builder) -> str:
    """What a plan and an error call a builder."""
    return str(getattr(build, "__qualname__", type(build).__qualname__))


def build_custom(build: Builder, plan: CoarsePlan, chain: BlockChain, first: int, last: int) -> nn.Module:
    """The module that a callable builds in the place of blocks ``first`` to ``last``.

    Raises:
        CoarseError: it returns no module, or one that does not run or maps to another shape.
    """
    name = builder_name(build)
    try:
        module = build(chain.module(first, last), plan.x.shape, plan.y.shape)
    except PararealizeError:
        raise
    except Exception as error:
        raise CoarseError(
            f"{name} raised {type(error).__name__} for F^{plan.j}: {error}; it is called as "
            f"{name}(segment, x_shape, y_shape) and has to return an nn.Module"
        ) from error
    if not isinstance(module, nn.Module):
        raise CoarseError(f"{name} gave {type(module).__name__} for F^{plan.j}; it has to return an nn.Module")
    signature = f"a module (batch, {_commas(plan.x)}) -> (batch, {_commas(plan.y)})"
    context = [node.meta["val"] for node in chain.context(first, last)] if takes_context(module) else []
    batch = chain.capture.batch if context else 2
    try:
        output = _try_out(module, plan.x, batch, context)
    except Exception as error:
        raise CoarseError(f"F^{plan.j} of {name} does not run: {error}; it has to return {signature}") from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (batch, *plan.y.shape):
        raise CoarseError(
            f"F^{plan.j} of {name} maps (batch, {_commas(plan.x)}) to {_batch(shape)}, but X_{plan.j + 1} is {plan.y}; "
            f"it has to return {signature}"
        )
    if any(plan.causal):
        _check_sides(module, plan, chain, name, chain.context(first, last) if takes_context(module) else ())
    return module


def _check_sides(module: nn.Module, plan: CoarsePlan, chain: BlockChain, name: str, context: Sequence[fx.Node]) -> None:
    """Raise where the module reads what the segment does not; on the meta device nothing can be tried out."""
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return
    probe = Probe(chain)
    try:
        values = probe.context(context)
        trial = try_out(module, plan.x, plan.y, batch=probe.batch, context=values)
    except UnprobedError as error:
        raise CoarseError(
            f"F^{plan.j} of {name} stands for a segment that is causal ({causal_axes(plan.causal)}), and whether it is "
            f"so, too, cannot be tried out: {error}; let it take any values of that shape"
        ) from error
    faults = [
        f"along axis {i} position o reads from {stride}·o - {behind} to {stride}·o + {ahead}, and the segment {side}"
        for i, ((stride, behind, ahead), side) in enumerate(zip(trial.axes, plan.causal, strict=True), 1)
        if side is not None and not side.allows(float(behind), float(ahead))
    ]
    if faults:
        raise CoarseError(
            f"F^{plan.j} of {name} reads what the segment that it stands for does not: {'; '.join(faults)}; pad its "
            "convolutions on the other side alone, and mix no positions by pools, norms or matrices"
        )


def _try_out(module: nn.Module, x: Space, batch: int, context: list[Any]) -> Any:
    """Run a copy of the module on fake tensors: no arithmetic, no memory, and the module stays as it is."""
    with FakeTensorMode() as fakes:

        def fake(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.empty(value.shape, dtype=value.dtype, device=value.device)

        tensors = [*module.parameters(), *module.buffers()]
        stand_in = copy.deepcopy(module, {id(tensor): fakes.from_tensor(tensor) for tensor in tensors})
        home = tensors[0].device if tensors else torch.get_default_device()
        value = torch.empty(batch, *x.shape, dtype=x.torch_dtype, device=home)
        return stand_in(value, *(pytree.tree_map(fake, node) for node in context))


def _commas(space: Space) -> str:
    return ", ".join(map(str, space.shape))


def _batch(shape: Any) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])})" if isinstance(shape, tuple) else str(shape)
