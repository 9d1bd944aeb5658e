"""Capture, what ``capture`` gives: a network as one fx graph over its own modules, with shapes and qualified names."""

from __future__ import annotations

import dataclasses

import torch
from torch import fx, nn

from .example import Example
from .guards import Guards
from .module_view import Piece

__all__ = ["CHANGES_ITSELF", "Capture"]

CHANGES_ITSELF = "it changes its own parameters or buffers outside torch.nn's modules"  # why a module is one call


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A network as one graph over its own modules.

    Attributes:
        graph_module: the graph as a runnable module, which shares the model's parameters. Each node's ``meta`` has:

            - ``val``, ``other``: its fake values, in train mode with ``batch`` samples and in eval mode with one more;
            - ``nn_module_stack``, ``calls``: names and classes of the modules it was called in, outermost first, and
              the numbers of those modules' calls;
            - ``trainable``: whether a parameter may have a part in its value, as in that of every module call;
            - ``region``: the grad modes, autocast regions and checkpoints that it stands in;
            - ``memories``: what memory the two values look into, equal for values that share it;
            - ``changed``: what memories the call changes in place, in either mode;
            - ``plain``: of a placeholder, the value of an input that is no tensor.
        model: the model, as found.
        example: the inputs that shapes were recorded for.
        batch: the batch size of those shapes.
        fixed_batch: whether the model itself takes no other batch size.
        opaque: qualified names of submodules that became one node each, and why.
        constants: tensors of the model that are neither parameters nor buffers, by name.
        guards: conditions on the inputs under which the graph is right.
    """

    graph_module: Piece
    model: nn.Module
    example: Example
    batch: int
    fixed_batch: bool
    opaque: dict[str, str]
    constants: dict[str, torch.Tensor]
    guards: Guards

    @property
    def graph(self) -> fx.Graph:
        """The graph itself."""
        return self.graph_module.graph

    def __str__(self) -> str:
        kinds = [node.op for node in self.graph.nodes]
        name, calls = type(self.model).__name__, kinds.count("call_module")
        lines = [f"{name}({self.example}): {len(kinds)} nodes, {calls} module calls"]
        lines += [f"  opaque {name}: {reason}" for name, reason in self.opaque.items()]
        return "\n".join(lines)
