"""A network, one batch -> GraphedInference: its forward pass as one CUDA graph, replayed with little host work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pararealize.argument_types import typed_arguments
from pararealize.errors import DeviceError
from pararealize.tracing.containers import copied

from .graphed_call import Call, GraphedCall, arguments_of_example, runnable

__all__ = ["GraphedInference", "capture_inference"]


@typed_arguments(DeviceError)
def capture_inference(net: nn.Module, example_inputs: Any, *, streams: bool = True) -> GraphedInference:
    """Capture a network's forward pass on one GPU, in its mode and without gradients, as one CUDA graph.

    :func:`capture_graphs` captures inference as well, several sizes of it, and compares all parameters in every call;
    this compares a fixed number of them, for batches so small that the host would not keep up.

    Args:
        net: as for :func:`capture_step`.
        example_inputs: likewise.
        streams: likewise.

    Returns:
        A function that is called as the network is, and returns its output.

    Raises:
        PararealizeError: as :func:`capture_step` does.

    Example:
        >>> from pararealize import capture_inference
        >>> from pararealize.models import resnet20
        >>> capture_inference(resnet20(), torch.randn(1, 3, 32, 32))
        Traceback (most recent call last):
            ...
        pararealize.errors.DeviceError: CUDA graphs need a network on GPUs, and this one is on cpu...
    """
    call = arguments_of_example(example_inputs)
    module, branches = runnable(net, call, streams=streams)
    return GraphedInference(module, branches, call)


class GraphedInference(GraphedCall):
    """A network's forward pass as one CUDA graph; made by :func:`capture_inference`.

    A call that does not fit, of another size, type, mode or state of autocast, runs eagerly with the same result.

    Attributes:
        name: of the network.
        device: of the network.
    """

    def __init__(self, module: nn.Module, branches: Sequence[torch.cuda.Stream], call: Call) -> None:
        super().__init__(module, branches, call)

        def run() -> Any:
            args, kwargs = self.inputs()
            return self.module(*args, **kwargs)

        with self.capturing(), torch.no_grad():
            self.warm_up(run)
            self._graph, self._output = self.capture(run)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output, a copy of what the next call overwrites; without a graph.

        Raises:
            ModelError: parameters or buffers have been moved, replaced or frozen since the capture.
        """
        leaves = self.leaves_of((args, kwargs))
        if leaves is None:
            return self.module(*args, **kwargs)
        self.fill(leaves)
        self._graph.replay()
        self.stamp.look()
        return copied(self._output)
