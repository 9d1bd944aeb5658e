"""A network, a batch -> its output and the ends of its windows, with gradients, by its own equation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from pararealize.errors import ExampleError, PararealizeError
from pararealize.network.module import PararealModule
from pararealize.network.parts import read_equation
from pararealize.tracing.call_signature import CallSignature

from .batch import inputs_of

__all__ = ["GraphRun", "RunValues"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunValues:
    """What a network gives.

    Attributes:
        output: its output.
        ends: w_m of every window, in order.
    """

    output: Any
    ends: tuple[Tensor, ...]


class GraphRun:
    """Runs a network in the mode that it is in.

    Args:
        net: the network.
    """

    def __init__(self, net: PararealModule) -> None:
        self.net = net
        self._call = CallSignature.of_graph(net.graph)
        self._inputs = CallSignature.tensor_nodes(net.graph)
        z = read_equation(net.graph).z
        self._ends = [z[window.segments[-1].index] for window in net.plan.windows]

    def __call__(self, batch: Any) -> RunValues:
        """The values of a batch.

        Raises:
            ExampleError: it does not fit the network.
            GuardError: its sizes are others than the network was recorded for.
        """
        tensors = inputs_of(batch, self._call)
        self.net.call_conditions.check_tensors(tensors)
        home = next(iter(self.net.stem.parameters()), next(self.net.parameters())).device
        run = fx.Interpreter(self.net, garbage_collect_values=False)
        values = run.env
        values.update((node, tensors[name].to(home)) for name, node in self._inputs.items())
        for node in self.net.graph.nodes:
            if not CallSignature.begins(node) and node.op != "output":
                try:
                    values[node] = run.run_node(node)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, IndexError, TypeError) as error:
                    if isinstance(error, PararealizeError):
                        raise
                    raise ExampleError(
                        f"{self.net.plan.model} does not take this batch: {error}; pass batches like the example "
                        "inputs of the conversion"
                    ) from error
        output = fx.map_arg(self.net.graph.output_node().args[0], values.__getitem__)
        return RunValues(output=output, ends=tuple(values[node] for node in self._ends))
