"""PararealModule, inputs -> Times: forward and backward seconds of every part, measured on the parts' own devices."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pararealize.analysis.stopwatch import Runnable, stopwatch
from pararealize.errors import ModelError
from pararealize.plan.times import Seconds, Times
from pararealize.random_state import preserve_torch_state

from .module import PararealModule

__all__ = ["Run", "measure_network"]


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
        ours = copy.deepcopy(net)
        arguments, keywords = _called(example_inputs)
        parts = _Parts(ours)
        parts.follow(arguments, keywords)
        runs = {name: parts.runs[name] for name in parts.names()}
        for name, (module, inputs) in others.items():
            values, named = _called(inputs)
            runs[f"beside {name}"] = Run(copy.deepcopy(module), values, named)
        taken = dict(zip(runs, stopwatch(list(runs.values()), home, repeats=repeats, warmup=warmup), strict=True))
    n = net.plan.n
    times = Times(
        stem=taken["stem"],
        segments=tuple(taken[f"g{j}"] for j in range(1, n + 1)),
        adapters=tuple(taken[f"C{j}"] for j in range(2, n + 1)),
        coarse=tuple(taken[f"F{j}"] for j in range(1, n)),
        head=taken["head"],
    )
    return times, {name: taken[f"beside {name}"] for name in others}


def _called(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


class Run(Runnable):
    """A module on fixed inputs, forward and backward, as a training step runs it."""

    def __init__(self, module: Any, inputs: Iterable[Any], named: Mapping[str, Any] | None = None) -> None:
        self.module = module
        self.inputs, self.named = pytree.tree_map_only(torch.Tensor, _leaf, (tuple(inputs), dict(named or {})))
        self.parameters = list(module.parameters()) if isinstance(module, nn.Module) else []
        self.arguments, self.keywords = self.inputs, self.named

    def again(self) -> None:
        """Without gradients, and with fresh copies of inputs that the module may change in place."""
        for leaf in (*self.parameters, *pytree.tree_leaves((self.inputs, self.named))):
            if isinstance(leaf, torch.Tensor):
                leaf.grad = None
        fresh = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.clone(), (self.inputs, self.named))
        self.arguments, self.keywords = fresh

    def forward(self) -> list[torch.Tensor]:
        """The outputs through which a gradient can flow."""
        result = self.module(*self.arguments, **self.keywords)
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]

    def backward(self, outputs: list[torch.Tensor]) -> None:
        """Gradients of parameters and inputs."""
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


class _Parts(fx.Interpreter):
    """Runs a parareal network and keeps a :class:`Run` of every part, on what enters it."""

    def __init__(self, net: PararealModule) -> None:
        super().__init__(net)
        self.net = net
        self.n = net.plan.n
        self.runs: dict[str, Runnable] = {}

    def names(self) -> list[str]:
        """The parts, in the order of the equation."""
        every = range(1, self.n + 1)
        return [
            "stem",
            *(f"C{j}" for j in every[1:]),
            *(f"g{j}" for j in every),
            *(f"F{j}" for j in every[:-1]),
            "head",
        ]

    def follow(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """One forward pass."""
        placeholders = [node for node in self.net.graph.nodes if node.op == "placeholder"]
        values = [
            arguments[i] if i < len(arguments) else keywords.get(str(node.target), node.args[0] if node.args else None)
            for i, node in enumerate(placeholders)
        ]
        self.env: dict[fx.Node, Any] = {}
        given = dict(zip(placeholders, values, strict=True))
        for node in self.net.graph.nodes:
            self.env[node] = given[node] if node in given else self.run_node(node)
            self._keep(node)

    def _keep(self, node: fx.Node) -> None:
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            inputs = pytree.tree_map_only(fx.Node, self.env.__getitem__, node.args)
            name = str(node.target).rpartition(".")[2]
            if not node.name.startswith("F_"):
                self.runs[name] = Run(module, inputs)
        elif node.name.startswith("z_"):
            self._correct(node)

    def _correct(self, node: fx.Node) -> None:
        """F^j with its subtraction and addition: ``y + F(z - x, *context)``."""
        y, correction = node.args
        assert isinstance(correction, fx.Node)
        residual, *context = correction.args
        assert isinstance(residual, fx.Node)
        values = pytree.tree_map_only(fx.Node, self.env.__getitem__, (*residual.args, y, *context))
        block = _Correction(self.fetch_attr(str(correction.target)))
        self.runs[f"F{correction.name.removeprefix('F_')}"] = Run(block, values)


class _Correction(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, z: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *context: Any) -> torch.Tensor:
        corrected: torch.Tensor = y + self.block(z - x, *context)
        return corrected
