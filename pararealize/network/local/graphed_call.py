"""A network, a call -> GraphedCall: static inputs, a stream and a pool of memory for what is captured of such calls.

The files above it capture a whole training step (``graphed_step.py``) and the forward pass (``graphed_inference.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pararealize.distributed.stage_module import StageModule
from pararealize.errors import CaptureError, DeviceError, ExampleError, ModelError
from pararealize.network.module import PararealModule
from pararealize.random_state import host_state
from pararealize.tracing.containers import leaves_of, map_leaves, nesting_of, tensors_of

from .capture_checks import check_hooks, check_static
from .cuda_graph import ERRORS, WARM_UP
from .graphed_network import autocast_without_cache, leaf_key, preserve_network_state, segment_devices
from .module import LocalModule, require_gpus
from .streams import lend
from .tensor_stamp import TensorStamp

__all__ = ["Call", "GraphedCall", "arguments_of_example", "runnable"]

Call: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments."""


class GraphedCall:
    """What is captured of a network with batches of one size, and the static memory of its inputs.

    Args:
        module: runs the network.
        branches: the streams that it forks to and joins.
        values: the arguments of a call, nested.

    Attributes:
        name: of the network.
        device: of the network.
    """

    def __init__(self, module: nn.Module, branches: Sequence[torch.cuda.Stream], values: Any) -> None:
        root: nn.Module = module.net if isinstance(module, LocalModule) else module
        self.module, self.branches, self.root = module, branches, root
        self.name = root.plan.model if isinstance(root, PararealModule) else type(root).__name__
        (self.device,) = {*segment_devices(root)}
        self.stream = torch.cuda.Stream(device=self.device)
        self._pool = torch.cuda.graph_pool_handle()  # one for all graphs of this step: they never run at the same time
        self._inputs = map_leaves(partial(_static, device=self.device), values)
        self._static = [*leaves_of(self._inputs)]
        self.tensors = tensors_of(self._static)
        self._nesting = nesting_of(values)
        self._mode = _mode(module, self.device.type, [*leaves_of(values)])
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self.stamp = TensorStamp(root, self.name)
        for value in self.tensors:  # allocated on the current stream, read on the capturing one
            lend(value, self.stream)

    def check(self) -> None:
        """Compare all parameters, buffers and modes with those of the capture; a call compares some of them.

        Raises:
            ModelError: one has been moved, replaced or frozen, or has another mode.
        """
        self.stamp.check()

    def release(self) -> None:
        """Give the graphs' memory back; calls run eagerly afterwards."""
        torch.cuda.synchronize(self.device)
        for graph in self._graphs:
            graph.reset()
        self._graphs, self._mode = [], None

    def leaves_of(self, values: Any) -> list[Any] | None:
        """The leaves of a call, where the capture fits it."""
        leaves = [*leaves_of(values)]
        fits = _mode(self.module, self.device.type, leaves) == self._mode and nesting_of(values) == self._nesting
        return leaves if fits else None

    def fill(self, leaves: Sequence[Any]) -> None:
        """Copy a call's tensors to where the graph reads them."""
        for static, leaf in zip(self._static, leaves, strict=True):
            if isinstance(static, Tensor):
                static.copy_(leaf, non_blocking=True)

    def inputs(self) -> Any:
        """Copies of the static inputs, nested as those of the example: a module may work in place."""
        return map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self._inputs)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Around a capture: what a run moves on is put back, and what CUDA refuses is a CaptureError."""
        before = host_state()
        generator = torch.get_rng_state() if self.device.type == "cuda" else None
        with preserve_network_state(self.root), autocast_without_cache(self.device.type), torch.inference_mode(False):
            try:
                yield
            except (CaptureError, ExampleError):
                raise
            except RuntimeError as error:
                raise CaptureError(
                    f"a step of {self.name} cannot be captured as a CUDA graph: {error}; run it eagerly, or look for "
                    "what in it waits for the GPU or depends on values"
                ) from error
            has_drawn = host_state() != before or (
                generator is not None and not torch.equal(generator, torch.get_rng_state())
            )
        if has_drawn:
            raise CaptureError(
                f"{self.name}, or its loss, draws random numbers on the host while it runs, of which a CUDA graph "
                "would keep the first ones; draw them with torch on the GPU, or run it eagerly"
            )

    def warm_up(self, run: Callable[[], Any]) -> None:
        """Run it a few times on the capturing stream: libraries keep a handle and a workspace for each stream."""
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                run()
        torch.cuda.synchronize()

    def capture(self, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """A graph of what a function does, and what it returned, which each replay fills."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode=ERRORS):
            result = run()
        self._graphs.append(graph)
        return graph, result


# ---------------------------------------------------------------------------------------------------------- bad input


def runnable(net: nn.Module, call: Call, *, streams: bool) -> tuple[nn.Module, Sequence[torch.cuda.Stream]]:
    """What runs a network, and the streams that it forks to; it has no captures of its own.

    Args:
        net: a converted network, what runs one locally, or any other module.
        call: the example.
        streams: whether segments run on streams of their own.

    Raises:
        ModelError: it is a rank's part of a distributed network.
        DeviceError: the network is not on one GPU.
        CaptureError: something in it needs Python or values while it runs.
        ExampleError: a converted network does not accept the example.
    """
    root = net.net if isinstance(net, LocalModule) else net
    if isinstance(root, StageModule):
        raise ModelError(
            f"{type(root).__name__} is a rank's part of a network, whose messages no graph can hold; pass a rank's "
            "stage to capture_stage"
        )
    devices = require_gpus(root)
    if len({*devices}) > 1:
        raise DeviceError(
            f"a step in one graph needs one GPU, and the network is on {len({*devices})}; convert it with one device, "
            "or capture its parts with capture_graphs(..., graphs='parts')"
        )
    if not isinstance(root, PararealModule):
        _check_hooks_of_modules(root)
        return root, ()
    check_hooks(root)
    local = LocalModule(root, streams=streams, stacks=net.stacks if isinstance(net, LocalModule) else ())
    args, kwargs = call
    runner, inputs = local.runner_of(args, kwargs)
    check_static(root, runner, inputs)
    return local, runner.streams or ()


def arguments_of_example(example: Any) -> Call:
    """A tensor, a tuple of positional or a dict of keyword arguments as a call."""
    if example is None:
        raise ExampleError("no example inputs; pass a batch of the size that will be run")
    if isinstance(example, tuple):
        return example, {}
    return ((), example) if isinstance(example, dict) else ((example,), {})


def _static(leaf: Any, device: torch.device) -> Any:
    return leaf.detach().to(device).clone() if isinstance(leaf, Tensor) else leaf


def _mode(module: nn.Module, kind: str, leaves: Sequence[Any]) -> Any:
    """What has to be equal for a call to fit: mode, autocast, tensors' keys and plain values."""
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return module.training, autocast, [*map(leaf_key, leaves)]


def _check_hooks_of_modules(root: nn.Module) -> None:
    hooked = [name or type(root).__name__ for name, module in root.named_modules() if _has_hooks(module)]
    if hooked:
        raise CaptureError(
            f"{type(root).__name__} has hooks, which would not run in a CUDA graph: on {', '.join(hooked[:3])}; remove "
            "them, or run it eagerly"
        )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
