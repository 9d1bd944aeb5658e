"""A graph that begins with a forward's arguments -> a module whose calls are refused where they do not fit the forward.

The check of :meth:`CallSignature.write` is in the graph, behind Python's own binding of arguments, whose ``TypeError``
would speak of generated code. So calls are looked at before as well.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import fx, nn

from .call_signature import CallSignature

__all__ = ["CalledModule"]


def _checked_call(self: CalledModule, *args: Any, **kwargs: Any) -> Any:
    """Look at the arguments first, unless hooks that come before the forward may change them."""
    if not torch.compiler.is_compiling() and not self._forward_pre_hooks:
        CallSignature.of_graph(self.graph).values(args, kwargs)
    return nn.Module.__call__(self, *args, **kwargs)


class CalledModule(fx.GraphModule):
    """A graph module that is called as the original network is.

    Raises:
        ExampleError: in a call with arguments that the forward has not, or of another form than the example's.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        """Give the class of every network, which fx makes anew for each, a ``__call__`` of its own.

        torch.compile counts compilations by code object: of one that all networks share, it would stop compiling at
        ``torch._dynamo.config.recompile_limit`` networks.
        """
        super().__init_subclass__(**settings)
        code = _checked_call.__code__.replace()
        cls.__call__ = types.FunctionType(code, _checked_call.__globals__, "__call__")  # type: ignore[method-assign]
