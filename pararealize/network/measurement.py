"""PararealModule, inputs -> Times: forward and backward seconds of every part, measured on the parts' own devices."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pararealize.analysis.stopwatch import Runnable, median_seconds
from pararealize.argument_types import typed_arguments
from pararealize.coarse.spec import numbered
from pararealize.errors import ModelError, PlanError
from pararealize.plan.spec import SegmentPlan
from pararealize.plan.times import Seconds, Times
from pararealize.random_state import preserve_torch_state
from pararealize.tracing.call_signature import CallSignature, as_call, binds
from pararealize.tracing.containers import copied, leaves_of, map_leaves
from pararealize.tracing.network_piece import contents_of

from .module import PararealModule
from .parts import read_equation

__all__ = ["PartRun", "measure_network"]


@typed_arguments(PlanError, net=ModelError)
def measure_network(
    net: PararealModule,
    example_inputs: Any,
    *,
    repeats: int = 5,
    warmup: int = 2,
    beside: Mapping[str, tuple[nn.Module, Any]] | None = None,
) -> tuple[Times, dict[str, Seconds]]:
    """Measure every part of a parareal network by itself, forward and backward, in turn.

    One round runs stem, adapters, segments, coarse blocks and head once each, on what enters them in a forward pass
    with the example; the medians of ``repeats`` rounds after ``warmup`` are taken. Everything happens on a copy:
    values, gradients, running statistics and the random state of the network stay as found.

    Args:
        net: the network, in the mode and on the devices of interest.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, of the batch of interest.
        repeats: measured rounds.
        warmup: rounds before those.
        beside: other modules with inputs of theirs, such as the original network, to measure in the same rounds.

    Returns:
        The times, and those of ``beside`` by name.

    Raises:
        ModelError: the network is on the meta device, where nothing runs.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3)
        >>> times, _ = measure_network(net, torch.randn(2, 3, 32, 32), repeats=1, warmup=0)
        >>> len(times.segments), len(times.coarse)
        (3, 2)
    """
    if any(tensor.is_meta for tensor in net.parameters()):
        raise ModelError(
            "the network is on the meta device, where nothing runs; give it memory with to_empty(device=…)"
        )
    home = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    others = dict(beside or {})
    with preserve_torch_state([home]), torch.inference_mode(False), torch.enable_grad():
        runs = _part_runs(copy.deepcopy(net), example_inputs)
        for name, (module, inputs) in others.items():
            args, kwargs = as_call(inputs)
            if not binds(inspect.signature(module.forward), args, kwargs):
                args, kwargs = (inputs,), {}
            runs[f"beside {name}"] = PartRun(copy.deepcopy(module), args, kwargs)
        medians = median_seconds(list(runs.values()), home, repeats=repeats, warmup=warmup)
    seconds = dict(zip(runs, medians, strict=True))
    plan = net.plan
    times = Times(
        stem=seconds["stem"],
        segments=tuple(_with_correction(seconds, row) for row in plan.segments),
        adapters=tuple(seconds[row.name] for row in plan.adapters),
        coarse=tuple(seconds[row.name] for row in plan.coarse_blocks),
        head=seconds["head"],
        corrections=(
            sum(seconds[row.name][0] for row in plan.corrections if row.name in seconds),
            sum(seconds[row.name][1] for row in plan.corrections if row.name in seconds),
        ),
    )
    return times, {name: seconds[f"beside {name}"] for name in others}


class PartRun(Runnable):
    """A module on fixed inputs, forward and backward, as a training step runs it."""

    def __init__(self, module: nn.Module, inputs: Iterable[Any], named: Mapping[str, Any] | None = None) -> None:
        self.module = module
        self.leaves = map_leaves(_leaf, (tuple(inputs), dict(named or {})))
        self.call = self.leaves

    def reset(self) -> None:
        """Drop the gradients, and take fresh copies of the inputs, which the module may change in place."""
        for leaf in (*contents_of(self.module).parameters(), *leaves_of(self.leaves)):
            if isinstance(leaf, torch.Tensor):
                leaf.grad = None
        self.call = copied(self.leaves)

    def forward(self) -> list[torch.Tensor]:
        """The outputs through which a gradient can flow."""
        args, kwargs = self.call
        result = self.module(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]

    def backward(self, outputs: list[torch.Tensor]) -> None:
        """Gradients of parameters and inputs."""
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _leaf(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


def _part_runs(net: PararealModule, example_inputs: Any) -> dict[str, Runnable]:
    """Run the network once; every part by its name, in the order of the equation, on what entered it.

    F^j stands with its subtraction and addition, ``y_{j+1} + F^j(z_j - x_{j+1})``, since that is what one interface
    costs. The context, which each device computes once, is not a part that is measured.
    """
    nodes = read_equation(net.graph)
    interpreter = fx.Interpreter(net, garbage_collect_values=False)
    values = interpreter.env
    tensors = copied(CallSignature.of_graph(net.graph).tensors_of(example_inputs))
    net.call_conditions.check_tensors(tensors)
    values.update((node, tensors[name]) for name, node in CallSignature.tensor_nodes(net.graph).items())
    runs: dict[str, Runnable] = {}
    names = {call: name for name, call in nodes.calls.items()}
    for node in net.graph.nodes:
        if CallSignature.begins(node):
            continue
        values[node] = interpreter.run_node(node)
        part = nodes.parts[names[node]] if node in names else None
        if part is None or part.kind == "context":
            continue
        module = net.get_submodule(part.target)
        reads = node.args
        if part.kind == "coarse":
            module = _Correction(module)
            reads = (*nodes.r[part.index].args, nodes.v[part.m, part.j + 1], *node.args[1:])
        # as soon as the node has run: an input that a later part changes in place is copied before that
        runs[part.name] = PartRun(module, pytree.tree_map_only(fx.Node, values.__getitem__, reads))
    return dict(sorted(runs.items(), key=lambda item: nodes.parts[item[0]].order))


class _Correction(nn.Module):
    """A coarse block with the subtraction before it and the addition behind it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, z: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *context: Any) -> torch.Tensor:
        corrected: torch.Tensor = y + self.block(z - x, *context)
        return corrected


def _with_correction(seconds: Mapping[str, tuple[float, float]], row: SegmentPlan) -> tuple[float, float]:
    """A segment and the correction of its output, where there is one."""
    segment, more = seconds[row.name], seconds.get(numbered("K", row.m, row.j), (0.0, 0.0))
    return segment[0] + more[0], segment[1] + more[1]
